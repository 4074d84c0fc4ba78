"""Scores of conversations from a running service."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tqdm import tqdm

from assay_client.client import RewardClient
from assay_client.errors import FingerprintChanged
from assay_client.types import Score, ScoreFailure
from assay_service.scoring.item import Item
from assay_training.evaluation.results import LENGTH
from assay_training.evaluation.table import Table

CALL_ITEMS = 512  # of one call to the client, whose deadline is for all that it is given


class Scored(Protocol):
    """Anything with conversations to be scored together."""

    @property
    def items(self) -> tuple[Item, ...]:
        """The conversations."""
        ...


@dataclass(frozen=True, slots=True)
class Scores:
    """What a service gave.

    Attributes:
        kept: indices of those of whose items every one was scored by every model.
        by_model: for each of the kept ones the scores of its items, on the logit scale.
        failures: items that have no score, by error code; what holds one is not kept.
        fingerprints: of the models.
    """

    kept: tuple[int, ...]
    by_model: dict[str, list[list[float]]]
    failures: Counter[str]
    fingerprints: dict[str, str]


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


def score(records: Sequence[Scored], client: RewardClient, models: Sequence[str]) -> Scores:
    """Every item's score by every model; a failure is counted and never becomes a number.

    Raises:
        FingerprintChanged: a model was another in the end than at the start.
        AssayError: the service could not be reached, or refused.
    """
    items = [
        {"messages": [{"role": m.role, "content": m.content} for m in item.messages]}
        for record in records
        for item in record.items
    ]
    answers, fingerprints = _answers(items, client, models)
    failures = Counter(row.error.code for rows in answers.values() for row in rows if isinstance(row, ScoreFailure))
    kept: list[int] = []
    by_model: dict[str, list[list[float]]] = {model: [] for model in models}
    start = 0
    for i, record in enumerate(records):
        end = start + len(record.items)
        scores = {model: [r.score for r in rows[start:end] if isinstance(r, Score)] for model, rows in answers.items()}
        if all(len(row) == end - start for row in scores.values()):
            kept.append(i)
            for model, row in scores.items():
                by_model[model].append(row)
        start = end
    return Scores(tuple(kept), by_model, failures, fingerprints)


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


def told(table: Table, scores: Scores) -> Table:
    """The same, with which models these were and what is missing, in its records and its notes."""
    whole = {"fingerprints": scores.fingerprints, "failures": dict(scores.failures)}
    records = tuple({**record, **whole} for record in table.records)
    lost = ", ".join(f"{count} {code}" for code, count in scores.failures.items())
    models = (f"{model}: fingerprint {fingerprint}" for model, fingerprint in scores.fingerprints.items())
    missing = (f"Items without a score, left out with their prompt: {lost}.",) if lost else ()
    return replace(table, records=records, notes=(*table.notes, *models, *missing))
