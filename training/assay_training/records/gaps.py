"""Read how much better a chosen completion is than a rejected one from a row of the format `preferences`."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from assay_training.records.record import GAP_OPTION, explain_drop
from assay_training.records.rows import Row

Gaps = Callable[[int, int], float | None]


def read_gaps(row: Row, largest: float | None, counts: tuple[int, int], said: Counter[str]) -> Gaps:
    """Return a function from a chosen completion i and a rejected completion j to their gap, or to None without one.

    A gap is a share of the source's largest gap. It is read from `gap` (already in 0..1), from `margin`, or from
    `score_chosen` minus `score_rejected`. Numbers may be written as texts. A gap below zero means that the rejected
    completion is better.

    Args:
        row: row of the format `preferences`.
        largest: margin or score difference that counts as a gap of 1; None if the source declares none.
        counts: numbers of chosen and of rejected completions; a score is one number, or one per completion.
        said: counter of phrases, to which the field that was read is added, or the reason why none was.

    Raises:
        RecordError: a field is not a number or is beyond the largest gap, two fields define the gap, or `margin` has
            no largest gap.
    """
    scores = [name for name in ("score_chosen", "score_rejected") if row.fields.get(name) is not None]
    given = [name for name in ("gap", "margin") if row.fields.get(name) is not None]
    if given == ["margin"] and largest is None:
        raise row.error(
            f"field {row.named('margin')} is a target margin: declare the source's `largest_gap` ({GAP_OPTION}), the "
            f"margin that counts as a gap of 1, or drop the field with {explain_drop('margin')}"
        )
    if scores and largest is None:
        said[f"not used: {', '.join(scores)} (`largest_gap` or `--largest-gap` makes their difference a gap)"] += 1
        scores = []
    if len(given) + bool(scores) > 1:
        raise row.error(
            f"fields {' and '.join([*given, *scores])} both define the gap; drop one of them with "
            f"{explain_drop((given or scores)[0])}"
        )
    if given:
        return _read_gap(row, given[0], 1.0 if given[0] == "gap" else largest or 1.0, said)
    return _read_difference(row, scores, largest or 1.0, counts, said) if scores else lambda i, j: None


def _read_gap(row: Row, name: str, largest: float, said: Counter[str]) -> Gaps:
    gap = _parse_number(row, name, row.fields[name]) / largest
    # A margin below zero is allowed: it favors the rejected completion, and its pair is dropped later.
    if gap > 1 or (name == "gap" and gap < 0):
        limit = "in 0..1" if name == "gap" else f"within the source's largest_gap {largest:g}"
        raise row.error(f"field {row.named(name)} is {row.fields[name]}, not {limit}")
    said[f"gap from {row.named(name)}" + f", as a share of {largest:g}" * (name != "gap")] += 1
    return lambda i, j: gap


def _read_difference(row: Row, names: list[str], largest: float, counts: tuple[int, int], said: Counter[str]) -> Gaps:
    if len(names) == 1:
        raise row.error(f"field {row.named(names[0])} is given without the other completion's score")
    chosen, rejected = (_read_numbers(row, name, count) for name, count in zip(names, counts, strict=True))
    # Only the upper end: a rejected completion with the higher score is dropped later, however far apart they are.
    widest = max(chosen) - min(rejected)
    if widest > largest:
        raise row.error(f"fields 'score_chosen' and 'score_rejected' differ by {widest:g}, more than {largest:g}")
    said[f"gap from {row.named(names[0])} minus {row.named(names[1])}, as a share of {largest:g}"] += 1
    return lambda i, j: (chosen[i] - rejected[j]) / largest


def _read_numbers(row: Row, name: str, count: int) -> list[float]:
    """Return one number per completion; a single number is repeated for all of them."""
    value = row.fields[name]
    if not isinstance(value, list):
        return [_parse_number(row, name, value)] * count
    if len(value) != count:
        raise row.error(f"field {row.named(name)} has {len(value)} numbers for {count} completions")
    return [_parse_number(row, name, one) for one in value]


def _parse_number(row: Row, name: str, value: Any) -> float:  # noqa: ANN401 - JSON
    try:
        # JSON's true is not a number, but Python's float(True) is 1.0.
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise row.error(f"field {row.named(name)} is {value!r}, not a number")
    return number
