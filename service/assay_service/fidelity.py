"""Compare the logits of two computations of one model, and keep the result beside the checkpoint; without torch."""

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from assay_service.errors import StartError
from assay_service.scoring.compute import Number
from assay_service.validation import SHA256_PATTERN, explain, format_key

FILE_NAME = "assay_fidelity.json"


class Fidelity(BaseModel):
    """The difference between the logits of one computation and those of a reference, on the same items.

    Attributes:
        against: numbers in which the reference computed.
        items: number of items.
        mean_difference: mean of the absolute differences, in standard deviations of the reference's logits.
        largest_difference: largest of these differences, in the same unit.
        spearman: rank correlation of the logits of all items.
        pairs: number of pairs of completions of one prompt whose reference logits differ.
        order_agreement: share of these pairs that are in the same order; None without pairs.
        prompts: number of prompts with several completions.
        changed_picks: number of these prompts whose best completion is another one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    against: Number
    items: int = Field(gt=0)
    mean_difference: float = Field(ge=0, allow_inf_nan=False)
    largest_difference: float = Field(ge=0, allow_inf_nan=False)
    spearman: float = Field(ge=-1.001, le=1.001)
    pairs: int = Field(ge=0)
    order_agreement: float | None = Field(ge=0, le=1)
    prompts: int = Field(ge=0)
    changed_picks: int = Field(ge=0)


class Record(BaseModel):
    """A fidelity with what it was measured on.

    Attributes:
        weights: SHA-256 of everything that decides the logits of the reference, from `identify`.
        compute: numbers in which the compared model computed.
        fidelity: result.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str = Field(pattern=SHA256_PATTERN)
    compute: Number
    fidelity: Fidelity


class _Records(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    records: tuple[Record, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """The logits of all completions of one prompt.

    Attributes:
        reference: logits of the reference.
        compared: logits of the compared computation, in the same order.
    """

    reference: tuple[float, ...]
    compared: tuple[float, ...]


def measure(groups: Sequence[Group], against: Number) -> Fidelity:
    """Return how far the compared logits are from those of the reference.

    Args:
        groups: logits by prompt; finite, and at least two of the reference's differ.
        against: numbers in which the reference computed.

    Raises:
        StartError: all logits of the reference are equal.
    """
    reference = [logit for group in groups for logit in group.reference]
    compared = [logit for group in groups for logit in group.compared]
    if len(set(reference)) < 2:
        raise StartError("FILE: all items have the same logit, so differences have no unit; give more items")
    unit = statistics.pstdev(reference)
    differences = [abs(one - other) / unit for one, other in zip(reference, compared, strict=True)]
    orders = [
        (one - other) * (first - second) > 0
        for group in groups
        for (one, first), (other, second) in combinations(zip(group.reference, group.compared, strict=True), 2)
        if one != other
    ]
    several = [group for group in groups if len(group.reference) > 1]
    changed = [group for group in several if group.reference[_find_best(group.compared)] < max(group.reference)]
    return Fidelity(
        against=against,
        items=len(reference),
        mean_difference=statistics.fmean(differences),
        largest_difference=max(differences),
        spearman=_correlate_ranks(reference, compared),
        pairs=len(orders),
        order_agreement=sum(orders) / len(orders) if orders else None,
        prompts=len(several),
        changed_picks=len(changed),
    )


def identify(provenance: Mapping[str, str | None]) -> str:
    """Return the SHA-256 of the fields of a provenance that decide logits, without the numbers that are compared."""
    parts = {key: value for key, value in provenance.items() if key not in ("compute", "model")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_fidelity(directory: Path, weights: str, compute: Number) -> Fidelity | None:
    """Return what was measured of these weights in these numbers; None if nothing was.

    Raises:
        StartError: the file in `directory` is not one of fidelities.
    """
    for record in _read(directory):
        if (record.weights, record.compute) == (weights, compute):
            return record.fidelity
    return None


def write_fidelity(directory: Path, record: Record) -> Path:
    """Keep a record in `directory`, in place of an older one of the same weights and numbers; return the file.

    Raises:
        StartError: the file in `directory` is not one of fidelities, or cannot be written.
    """
    key = record.weights, record.compute
    kept = [other for other in _read(directory) if (other.weights, other.compute) != key]
    path = directory / FILE_NAME
    try:
        path.write_text(_Records(records=(*kept, record)).model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise StartError(f"{path}: cannot be written: {error}; copy the checkpoint to a writable directory") from error
    return path


def _read(directory: Path) -> tuple[Record, ...]:
    path = directory / FILE_NAME
    if not path.is_file():
        return ()
    try:
        return _Records.model_validate_json(path.read_bytes()).records
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise StartError(*(f"{path}: {format_key(e['loc']) or 'the file'}: {explain(e)}" for e in errors)) from error


def _find_best(logits: Sequence[float]) -> int:
    return max(range(len(logits)), key=logits.__getitem__)


def _correlate_ranks(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's rank correlation; equal numbers share the mean of their ranks."""
    if len(set(other)) < 2:  # a constant orders nothing
        return 0.0
    return statistics.correlation(_rank(one), _rank(other))


def _rank(numbers: Sequence[float]) -> list[float]:
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    ranks = [0.0] * len(numbers)
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and numbers[order[end]] == numbers[order[start]]:
            end += 1
        for place in order[start:end]:
            ranks[place] = (start + end - 1) / 2
        start = end
    return ranks
