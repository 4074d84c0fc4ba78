"""Scores of conversations from a running service."""

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

CALL_ITEMS = 512  # of one call to the client, whose deadline is for all that it is given


class Scored(Protocol):
    """Anything with conversations to be scored together."""

    @property
    def items(self) -> tuple[Item, ...]:
        """The conversations."""
        ...


R = TypeVar("R", bound=Scored)


@dataclass(frozen=True, slots=True)
class Scores(Generic[R]):
    """What a service gave.

    Attributes:
        records: what was asked, without the items that not every model has scored; a record of which nothing to compare
            is left is not there.
        by_model: for each of these the scores of its items, on the logit scale.
        failures: items that have no score, each once, by the error code of the first model that gave none.
        fingerprints: of the models.
        asked: how many records there were.
        in_part: how many of those left have lost an item.
    """

    records: list[R]
    by_model: dict[str, list[list[float]]]
    failures: Counter[str]
    fingerprints: dict[str, str]
    asked: int
    in_part: int


GOLD = "gold itself"
BASELINES = frozenset({LENGTH, GOLD})


def lengths(records: Sequence[Scored]) -> list[list[float]]:
    """Characters of every completion: the baseline of every reward."""
    return [[float(len(item.completion)) for item in record.items] for record in records]


def models_of(client: RewardClient, asked: Sequence[str], gold: str | None = None) -> list[str]:
    """The models to ask: those that were named, else all that are served; and `gold`.

    Raises:
        ValueError: one of them is not served, or has the name of a baseline.
    """
    served = [card.id for card in client.models()]
    models = list(dict.fromkeys([*(asked or served), *([gold] if gold else [])]))
    unknown = next((name for name in models if name not in served), None)
    if unknown is not None:
        raise ValueError(f"{unknown!r} is not served; served are {', '.join(served)}")
    taken = BASELINES & set(models)
    if taken:
        raise ValueError(f"{min(taken)!r} is served, but is the name of a baseline here; name the others by --model")
    return models


def score(
    records: Sequence[R],
    part: Callable[[R, Sequence[int]], R | None],
    client: RewardClient,
    models: Sequence[str],
) -> Scores[R]:
    """Every item's score by every model; a failure is counted, and never becomes a number.

    Args:
        records: whose items are to be scored.
        part: a record with some of its items alone; None where nothing is left to compare.
        client: of the service.
        models: to ask.

    Raises:
        FingerprintChanged: a model was another in the end than at the start.
        AssayError: the service could not be reached, or refused.
    """
    items = [{"messages": [m.as_dict() for m in item.messages]} for record in records for item in record.items]
    answers, fingerprints = _answers(items, client, models)
    faults = [_fault(rows) for rows in zip(*answers.values(), strict=True)]
    left: list[R] = []
    by_model: dict[str, list[list[float]]] = {model: [] for model in models}
    start = in_part = 0
    for record in records:
        places = range(start, start + len(record.items))
        scored = [k for k, place in enumerate(places) if faults[place] is None]
        found = record if len(scored) == len(places) else part(record, scored)
        if found is not None:
            left.append(found)
            in_part += found is not record
            for model, rows in answers.items():
                by_model[model].append(
                    [row.score for row in (rows[start + k] for k in scored) if isinstance(row, Score)]
                )
        start = places.stop
    failures = Counter(fault for fault in faults if fault is not None)
    return Scores(left, by_model, failures, fingerprints, len(records), in_part)


def _fault(rows: Sequence[Score | ScoreFailure]) -> str | None:
    """The first error code among the models' answers to an item; a blend has those of its parts once more."""
    return next((row.error.code for row in rows if isinstance(row, ScoreFailure)), None)


def _answers(
    items: Sequence[Mapping[str, object]], client: RewardClient, models: Sequence[str]
) -> tuple[dict[str, list[Score | ScoreFailure]], dict[str, str]]:
    """By model what it answered to every item, and its fingerprint."""
    answers: dict[str, list[Score | ScoreFailure]] = {model: [] for model in models}
    fingerprints: dict[str, str] = {}
    with tqdm(total=len(items) * len(models), desc="score", unit="scores", mininterval=5) as progress:
        for start in range(0, len(items), CALL_ITEMS):
            for model in models:
                answer = client.score(items[start : start + CALL_ITEMS], model=model)
                if fingerprints.setdefault(model, answer.fingerprint) != answer.fingerprint:
                    raise FingerprintChanged(fingerprints[model], answer.fingerprint)
                answers[model] += answer.data
                progress.update(len(answer.data))
    return answers, fingerprints


def annotate(table: Table, scores: Scores[R], read: Read[Any]) -> Table:
    """The same, with which models these were and what is missing, in its records and its notes.

    Args:
        table: of the scores.
        scores: what the service gave.
        read: what the files held: what was understood of their fields, and how many rows could not be used.
    """
    kept = len(scores.records)
    whole = {
        "fingerprints": scores.fingerprints,
        "failures": dict(scores.failures),
        "asked": scores.asked,
        "kept": kept,
        "kept_in_part": scores.in_part,
        "left_out": dict(read.left_out),
    }
    records = tuple({**record, **whole} for record in table.records)
    lost = ", ".join(f"{count} {code}" for code, count in scores.failures.items())
    models = (f"{model}: fingerprint {fingerprint}" for model, fingerprint in scores.fingerprints.items())
    missing = (
        f"Completions without a score, left out with all comparisons to them: {lost}. "
        f"Left of {scores.asked} prompts: {kept}, {scores.in_part} of them without some completion.",
    )
    notes = (*table.notes, *models, *read.report_lines(), *(missing if lost else ()))
    return replace(table, records=records, notes=notes)
