"""Get the scores of conversations from a running service."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from tqdm import tqdm

from assay_client.client import RewardClient
from assay_client.errors import FingerprintChanged
from assay_client.types import Score, ScoreFailure
from assay_service.scoring.item import Item
from assay_training.evaluation.results import LENGTH
from assay_training.evaluation.table import Table
from assay_training.records.sources import Read

CALL_ITEMS = 512  # items per call of the client, since its deadline covers the whole call


class Scored(Protocol):
    """A record whose conversations are scored together."""

    @property
    def items(self) -> tuple[Item, ...]:
        """Return the conversations."""
        ...


R = TypeVar("R", bound=Scored)


@dataclass(frozen=True, slots=True)
class Scores(Generic[R]):
    """The scores of a service, and the records that they belong to.

    Attributes:
        records: records without the items that some model could not score; those with nothing to compare are dropped.
        by_model: scores by model, record and item, as logits.
        failures: number of items without a score, by the error code of the first model that failed.
        fingerprints: fingerprint of each model.
        asked: number of records before any was dropped.
        in_part: number of remaining records that lost an item.
    """

    records: list[R]
    by_model: dict[str, list[list[float]]]
    failures: Counter[str]
    fingerprints: dict[str, str]
    asked: int
    in_part: int


GOLD = "gold itself"
BASELINES = frozenset({LENGTH, GOLD})


def measure_lengths(records: Sequence[Scored]) -> list[list[float]]:
    """Return the length of every completion in characters, the baseline of every reward, by record and item."""
    return [[float(len(item.completion)) for item in record.items] for record in records]


def select_models(client: RewardClient, requested: Sequence[str], gold: str | None = None) -> list[str]:
    """Return the models to ask: the requested ones, or all that are served, and the gold model.

    Args:
        client: client of the service.
        requested: names of signals and blends; empty for all.
        gold: name of the gold model, if there is one.

    Raises:
        ValueError: a model is not served, or has the name of a baseline.
        AssayError: the service cannot be reached, or refuses the request.
    """
    # Checked before any score is requested: a wrong name should not cost a run over all models.
    served = [card.id for card in client.models()]
    models = list(dict.fromkeys([*(requested or served), *([gold] if gold else [])]))
    unknown = next((name for name in models if name not in served), None)
    if unknown is not None:
        raise ValueError(f"model {unknown!r} is not served; the served models are {', '.join(served)}")
    # Both would be rows of one table under one name.
    taken = BASELINES & set(models)
    if taken:
        raise ValueError(f"model {min(taken)!r} has the name of a baseline; select the other models with --model")
    return models


def fetch_scores(
    records: Sequence[R],
    select: Callable[[R, Sequence[int]], R | None],
    client: RewardClient,
    models: Sequence[str],
) -> Scores[R]:
    """Return every item's score by every model.

    An item that one model cannot score is dropped for all models, so that all are compared on the same items. It is
    counted, and never replaced by a number.

    Args:
        records: records whose items are scored.
        select: function from a record and the indices of some items to the record with those items alone. Its result is
            `None` if nothing is left to compare.
        client: client of the service.
        models: names of the models to ask.

    Raises:
        FingerprintChanged: a model was replaced during the evaluation.
        AssayError: the service cannot be reached, or refuses a request.
    """
    items = [{"messages": [m.as_dict() for m in item.messages]} for record in records for item in record.items]
    answers, fingerprints = _request_scores(items, client, models)
    faults = [_find_fault(rows) for rows in zip(*answers.values(), strict=True)]
    kept: list[R] = []
    by_model: dict[str, list[list[float]]] = {model: [] for model in models}
    start = in_part = 0
    for record in records:
        places = range(start, start + len(record.items))
        scored = [k for k, place in enumerate(places) if faults[place] is None]
        remaining = record if len(scored) == len(places) else select(record, scored)
        if remaining is not None:
            kept.append(remaining)
            in_part += remaining is not record
            for model, rows in answers.items():
                by_model[model].append(
                    [row.score for row in (rows[start + k] for k in scored) if isinstance(row, Score)]
                )
        start = places.stop
    failures = Counter(fault for fault in faults if fault is not None)
    return Scores(kept, by_model, failures, fingerprints, len(records), in_part)


def _find_fault(rows: Sequence[Score | ScoreFailure]) -> str | None:
    """Return the first error code among the models' answers to an item.

    Only the first counts: a blend fails with the same error as its signals.
    """
    return next((row.error.code for row in rows if isinstance(row, ScoreFailure)), None)


def _request_scores(
    items: Sequence[Mapping[str, object]], client: RewardClient, models: Sequence[str]
) -> tuple[dict[str, list[Score | ScoreFailure]], dict[str, str]]:
    """Return, by model, its answer to every item and its fingerprint."""
    answers: dict[str, list[Score | ScoreFailure]] = {model: [] for model in models}
    fingerprints: dict[str, str] = {}
    with tqdm(total=len(items) * len(models), desc="score", unit="scores", mininterval=5) as progress:
        for start in range(0, len(items), CALL_ITEMS):
            for model in models:
                answer = client.score(items[start : start + CALL_ITEMS], model=model)
                # Scores of two versions of a model must not meet in one table.
                if fingerprints.setdefault(model, answer.fingerprint) != answer.fingerprint:
                    raise FingerprintChanged(fingerprints[model], answer.fingerprint)
                answers[model] += answer.data
                progress.update(len(answer.data))
    return answers, fingerprints


def annotate(table: Table, scores: Scores[R], read: Read[Any]) -> Table:
    """Return a table with the models' fingerprints and the counts of dropped rows in its records and notes.

    Args:
        table: table of the scores.
        scores: scores of the service.
        read: records of the files, with the fields that were read and the count of dropped rows.
    """
    kept = len(scores.records)
    whole_run = {
        "fingerprints": scores.fingerprints,
        "failures": dict(scores.failures),
        "asked": scores.asked,
        "kept": kept,
        "kept_in_part": scores.in_part,
        "dropped": dict(read.dropped),
    }
    records = tuple({**record, **whole_run} for record in table.records)
    failed = ", ".join(f"{count} {code}" for code, count in scores.failures.items())
    models = (f"{model}: fingerprint {fingerprint}" for model, fingerprint in scores.fingerprints.items())
    missing = (
        f"Completions without a score, dropped with all comparisons to them: {failed}. "
        f"Kept: {kept} of {scores.asked} prompts, {scores.in_part} of them without some of their completions.",
    )
    notes = (*table.notes, *models, *read.report_lines(), *(missing if failed else ()))
    return replace(table, records=records, notes=notes)
