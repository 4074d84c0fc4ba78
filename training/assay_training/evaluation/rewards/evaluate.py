"""Evaluate a running service on judged data: read the files, get the scores and build the table."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from assay_client.client import RewardClient
from assay_training.evaluation.rewards.best_of_n import tabulate_best_of_n
from assay_training.evaluation.rewards.inputs import (
    read_candidates,
    read_comparisons,
    select_candidates,
    select_ranking,
)
from assay_training.evaluation.rewards.options import ReadOptions
from assay_training.evaluation.rewards.scores import Scored, Scores, annotate, fetch_scores, select_models
from assay_training.evaluation.table import Table
from assay_training.records.record import Ranking
from assay_training.records.sources import Read

T = TypeVar("T")
R = TypeVar("R", bound=Scored)


def evaluate_rankings(
    tabulate: Callable[[list[Ranking], dict[str, list[list[float]]]], Table],
    sources: Sequence[str],
    options: ReadOptions,
    client: RewardClient,
    models: Sequence[str],
) -> Table:
    """Return the table of an evaluation of rankings.

    Args:
        tabulate: function from rankings and every model's scores, by ranking and completion, to a table.
        sources: any number of `FORMAT:PATH`.
        options: options for reading the rows.
        client: client of the service, which is closed at the end.
        models: signals and blends to evaluate; empty for all that are served.

    Raises:
        ValueError: a file is malformed, a model is not served, or no comparison is left.
        AssayError: the service cannot be reached, or refuses a request.
    """
    read = _merge([read_comparisons(source, options) for source in sources])
    scores = _fetch(read.records, select_ranking, sources, client, models)
    return annotate(tabulate(scores.records, scores.by_model), scores, read)


def evaluate_candidates(
    sources: Sequence[str], options: ReadOptions, client: RewardClient, models: Sequence[str], gold: str | None
) -> Table:
    """Return the table of best-of-N sampling.

    Args:
        sources: any number of `FORMAT:PATH`.
        options: options for reading the rows.
        client: client of the service, which is closed at the end.
        models: signals and blends to select by; empty for all that are served.
        gold: served model whose score is the gold value of a completion; `None` to use the labels.

    Raises:
        ValueError: a file is malformed, a model is not served, no comparison is left, or there is neither a label nor
            a gold model.
        AssayError: the service cannot be reached, or refuses a request.
    """
    read = _merge([read_candidates(source, options) for source in sources])
    if gold is None and not all(candidates.gold for candidates in read.records):
        raise ValueError("some completions have no label; name a served model as the gold value with --gold")
    scores = _fetch(read.records, select_candidates, sources, client, models, gold)
    gold_values = None if gold is None else scores.by_model[gold]
    # A model that selects by its own gold value would only repeat the baseline `gold itself`.
    selectors = {name: values for name, values in scores.by_model.items() if name != gold}
    return annotate(tabulate_best_of_n(scores.records, gold_values, selectors), scores, read)


def _merge(reads: Sequence[Read[T]]) -> Read[T]:
    """Return the records of several sources together, with their counts of dropped rows."""
    dropped = sum((read.dropped for read in reads), Counter[str]())
    understood = {name: counts for read in reads for name, counts in read.understood.items()}
    return Read([record for read in reads for record in read.records], dropped, understood)


def _fetch(
    records: list[R],
    select: Callable[[R, Sequence[int]], R | None],
    sources: Sequence[str],
    client: RewardClient,
    models: Sequence[str],
    gold: str | None = None,
) -> Scores[R]:
    """Return the scores of all records by every requested model, and by the gold model."""
    if not records:
        raise ValueError(f"{', '.join(sources)}: found no records to evaluate")
    with client:
        scores = fetch_scores(records, select, client, select_models(client, models, gold))
    if not scores.records:
        raise ValueError(
            f"too few completions have a score to compare any; completions without one, by error code: "
            f"{dict(scores.failures)}"
        )
    return scores
