"""How much better a chosen reply is than a rejected one, as a row of `preferences` says it."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from assay_training.records.rows import GAP_OPTION, Row, leave_out

Gaps = Callable[[int, int], float | None]


def gaps_of(row: Row, largest: float | None, counts: tuple[int, int], said: Counter[str]) -> Gaps:
    """Return the gap of the chosen reply i and the rejected reply j, as a share of the source's largest gap.

    It comes from `gap` (0..1 already), from `margin`, or from `score_chosen` less `score_rejected`; numbers may be
    written as texts. A gap below zero says that the rejected reply is better.

    Args:
        row: of the format `preferences`.
        largest: the margin or difference of scores that counts as a gap of 1; None where the source declares none.
        counts: how many replies are chosen and rejected; scores are one number, or one per reply.
        said: is told which field is read, or why none is.

    Raises:
        RecordError: a field is no number, or beyond the largest gap; two fields say it; or `margin` has no scale.
    """
    scores = [name for name in ("score_chosen", "score_rejected") if row.fields.get(name) is not None]
    given = [name for name in ("gap", "margin") if row.fields.get(name) is not None]
    if given == ["margin"] and largest is None:
        raise row.error(
            f"field {row.named('margin')} is a target margin: declare the source's `largest_gap` ({GAP_OPTION}), the "
            f"margin that counts as a gap of 1, or leave the field out with {leave_out('margin')}"
        )
    if scores and largest is None:
        said[f"not used: {', '.join(scores)} (`largest_gap` or `--largest-gap` makes their difference a gap)"] += 1
        scores = []
    if len(given) + bool(scores) > 1:
        raise row.error(
            f"fields {' and '.join([*given, *scores])} both say how much better; leave one out with "
            f"{leave_out((given or scores)[0])}"
        )
    if given:
        return _one(row, given[0], 1.0 if given[0] == "gap" else largest or 1.0, said)
    return _difference(row, scores, largest or 1.0, counts, said) if scores else lambda i, j: None


def _one(row: Row, name: str, largest: float, said: Counter[str]) -> Gaps:
    gap = _number(row, name, row.fields[name]) / largest
    if gap > 1 or (name == "gap" and gap < 0):
        limit = "in 0..1" if name == "gap" else f"within the source's largest_gap {largest:g}"
        raise row.error(f"field {row.named(name)} is {row.fields[name]}, not {limit}")
    said[f"gap from {row.named(name)}" + f", as a share of {largest:g}" * (name != "gap")] += 1
    return lambda i, j: gap


def _difference(row: Row, names: list[str], largest: float, counts: tuple[int, int], said: Counter[str]) -> Gaps:
    if len(names) == 1:
        raise row.error(f"field {row.named(names[0])} is there without the other reply's score")
    chosen, rejected = (_numbers(row, name, count) for name, count in zip(names, counts, strict=True))
    widest = max(chosen) - min(rejected)
    if widest > largest:
        raise row.error(f"fields 'score_chosen' and 'score_rejected' differ by {widest:g}, more than {largest:g}")
    said[f"gap from {row.named(names[0])} less {row.named(names[1])}, as a share of {largest:g}"] += 1
    return lambda i, j: (chosen[i] - rejected[j]) / largest


def _numbers(row: Row, name: str, count: int) -> list[float]:
    """Return a number per reply; a single number is of all of them."""
    value = row.fields[name]
    if not isinstance(value, list):
        return [_number(row, name, value)] * count
    if len(value) != count:
        raise row.error(f"field {row.named(name)} has {len(value)} numbers for {count} replies")
    return [_number(row, name, one) for one in value]


def _number(row: Row, name: str, value: Any) -> float:  # noqa: ANN401 - JSON
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise row.error(f"field {row.named(name)} is {value!r}, not a number")
    return number
