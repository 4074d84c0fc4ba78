"""What was judged, read from files and scored by a running service, to a table."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from assay_client.client import RewardClient
from assay_training.evaluation.rewards.best_of_n import best_of_n
from assay_training.evaluation.rewards.judged import candidates_of, ranking_of, read_candidates, read_comparisons
from assay_training.evaluation.rewards.reading import Reading
from assay_training.evaluation.rewards.served import Scored, Scores, annotate, models_of, score
from assay_training.evaluation.table import Table
from assay_training.records.record import Ranking
from assay_training.records.sources import Read

T = TypeVar("T")
R = TypeVar("R", bound=Scored)


def of_rankings(
    evaluate: Callable[[list[Ranking], dict[str, list[list[float]]]], Table],
    judged: Sequence[str],
    reading: Reading,
    url: str,
    models: Sequence[str],
) -> Table:
    """Return the table of an evaluation of rankings.

    Args:
        evaluate: rankings and every model's scores to a table.
        judged: `FORMAT:PATH`, any number of them.
        reading: how their rows are read.
        url: of the service.
        models: signals and blends; none for all that are served.

    Raises:
        ValueError: a file is malformed, a model is not served, or nothing can be compared.
        AssayError: the service could not be reached, or refused.
    """
    read = _together([read_comparisons(given, reading) for given in judged])
    scores = _scored(read.records, ranking_of, judged, url, models)
    return annotate(evaluate(scores.records, scores.by_model), scores, read)


def of_candidates(judged: Sequence[str], reading: Reading, url: str, models: Sequence[str], gold: str | None) -> Table:
    """Return the table of the best of N.

    Args:
        judged: `FORMAT:PATH`, any number of them.
        reading: how their rows are read.
        url: of the service.
        models: signals and blends; none for all that are served.
        gold: the served model that says what a completion is worth; `None` for the labels.

    Raises:
        ValueError: as for `of_rankings`, or there are neither labels nor a gold model.
        AssayError: the service could not be reached, or refused.
    """
    read = _together([read_candidates(given, reading) for given in judged])
    if gold is None and not all(of.gold for of in read.records):
        raise ValueError("rollouts have no gold value of their own; name a served model to judge by: --gold")
    scores = _scored(read.records, candidates_of, judged, url, models, gold)
    worth = None if gold is None else scores.by_model[gold]
    ways = {name: of for name, of in scores.by_model.items() if name != gold}
    return annotate(best_of_n(scores.records, worth, ways), scores, read)


def _together(reads: Sequence[Read[T]]) -> Read[T]:
    left_out = sum((read.left_out for read in reads), Counter[str]())
    understood = {name: said for read in reads for name, said in read.understood.items()}
    return Read([record for read in reads for record in read.records], left_out, understood)


def _scored(
    records: list[R],
    part: Callable[[R, Sequence[int]], R | None],
    judged: Sequence[str],
    url: str,
    models: Sequence[str],
    gold: str | None = None,
) -> Scores[R]:
    """Return what every model that is asked has scored."""
    if not records:
        raise ValueError(f"{', '.join(judged)}: nothing in it")
    with RewardClient(url) as client:
        scores = score(records, part, client, models_of(client, models, gold))
    if not scores.records:
        raise ValueError(f"nothing could be scored that can be compared: {dict(scores.failures)}")
    return scores
