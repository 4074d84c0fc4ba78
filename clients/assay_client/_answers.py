"""Read and check answers of the service: JSON bytes become the client's values.

Unknown fields are ignored, so that an older client reads a newer server. Wrong ones are refused, never repaired.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import pairwise
from types import NoneType
from typing import TypeAlias, TypeVar, get_args

from assay_client import results as r
from assay_client import types as t
from assay_client.errors import FingerprintChanged, InvalidAnswer

EXCERPT_CHARS = 80  # the longest part of a wrong value that an error message shows
TYPE_NAMES: Mapping[object, str] = {str: "text", int: "a count", bool: "true or false", NoneType: "null"}

Row: TypeAlias = Mapping[str, object]
T = TypeVar("T")
ScoreT = TypeVar("ScoreT", bound=t.Score)
OutcomeT = TypeVar("OutcomeT", bound=t.Score | r.RenderedItem | t.ScoreFailure)


def to_finite(value: object) -> float | None:
    """Return a number as a float, or None for NaN, an infinity and everything that is not a number."""
    try:
        # Python's bool is an int, but JSON's true is not a number.
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an int beyond any float
        pass
    return None


def _show(value: object) -> str:
    return json.dumps(value)[:EXCERPT_CHARS]


def _check_value(value: object, hint: object, where: str) -> object:
    """Return `value` if it is what `hint` says: str, int (a count), float (finite), bool, or one of these or None."""
    kinds = get_args(hint) or (hint,)
    if value is None and NoneType in kinds:
        return None
    if float in kinds:
        return _check_number(value, where)
    if any(kind in kinds and isinstance(value, kind) for kind in (str, bool)):
        return value
    if int in kinds and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    expected = " or ".join(TYPE_NAMES[kind] for kind in kinds)
    raise InvalidAnswer(f"{where}: expected {expected}, got {_show(value)}")


def _check_number(value: object, where: str) -> float:
    number = to_finite(value)
    if number is None:
        raise InvalidAnswer(f"{where}: expected a finite number, got {_show(value)}")
    return number


def _read_fields(kind: type[T], value: object, where: str, **known: object) -> T:
    """Build a dataclass from an object; every field is checked against its annotation, except those in `known`."""
    row = _check_object(value, where)
    for field in fields(kind):  # type: ignore[arg-type]  # every `kind` here is a dataclass
        if field.name not in known:
            # A missing field reads as None, because the service omits some fields that have no value.
            known[field.name] = _check_value(row.get(field.name), field.type, f"{where}.{field.name}")
    return kind(**known)


def _check_object(value: object, where: str) -> Row:
    if isinstance(value, dict):
        return value
    raise InvalidAnswer(f"{where}: expected an object, got {_show(value)}")


def _read_rows(answer: Row, name: str) -> list[Row]:
    value = answer.get(name)
    if not isinstance(value, list):
        raise InvalidAnswer(f"{name}: expected a list, got {_show(value)}")
    return [_check_object(row, f"{name}[{index}]") for index, row in enumerate(value)]


def _read_mapping(kind: type[T], value: object, where: str) -> dict[str, T]:
    return {name: _read_fields(kind, row, f"{where}.{name}") for name, row in _check_object(value, where).items()}


def parse_object(body: bytes, kind: str | None = None) -> Row:
    """Return the JSON object of an answer, whose field `object` must be `kind` if that is given.

    Raises:
        InvalidAnswer: the body is not JSON, which has no NaN and no infinities, or it is another kind of object.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidAnswer(f"the answer is not JSON: {error}") from error
    answer = _check_object(value, "answer")
    if kind is not None and answer.get("object") != kind:
        raise InvalidAnswer(f"expected an answer of type {kind}, got {_show(answer.get('object'))}")
    return answer


def _read_numbers(value: object, where: str) -> dict[str, float]:
    return {name: _check_number(each, f"{where}.{name}") for name, each in _check_object(value, where).items()}


def _read_provenance(answer: Row) -> t.Provenance:
    row = _check_object(answer.get("provenance"), "provenance")
    blend = row.get("blend")
    if blend is not None:
        weights = _read_numbers(_check_object(blend, "provenance.blend").get("weights"), "provenance.blend.weights")
        blend = _read_fields(t.Blend, blend, "provenance.blend", weights=weights)
    signals = _read_mapping(t.SignalProvenance, row.get("signals"), "provenance.signals")
    return _read_fields(t.Provenance, row, "provenance", blend=blend, signals=signals)


def _read_outcomes(
    read: Callable[[Row, str], T], answer: Row, name: str, ids: Sequence[str | None]
) -> list[T | t.ScoreFailure]:
    """Return the rows under `name`, read by `read` or as failures; each must be about an item that was sent."""
    return [_read_outcome(read, row, ids, f"{name}[{n}]") for n, row in enumerate(_read_rows(answer, name))]


def _read_outcome(read: Callable[[Row, str], T], row: Row, ids: Sequence[str | None], where: str) -> T | t.ScoreFailure:
    index = row.get("index")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(ids):
        raise InvalidAnswer(f"{where}: index {_show(index)} is not one of the {len(ids)} items")
    # Items are matched by index alone; an id that differs shows that the server mixed them up.
    if row.get("id") != ids[index]:
        raise InvalidAnswer(f"{where}: the id of item {index} came back changed")
    if row.get("error") is None:
        return read(row, where)
    if row.get("score") is not None:
        raise InvalidAnswer(f"{where}: the row has both a score and an error")
    return t.ScoreFailure(index, ids[index], _read_fields(t.ItemError, row["error"], f"{where}.error"))


def _build_reader(kind: type[ScoreT]) -> Callable[[Row, str], ScoreT]:
    """Return a function that reads a row with a score as a `kind`."""
    return lambda row, where: _read_fields(
        kind, row, where, signals=_read_mapping(t.SignalValue, row.get("signals"), f"{where}.signals")
    )


def _sort_rows(rows: list[OutcomeT], ids: Sequence[str | None], offset: int) -> tuple[OutcomeT, ...]:
    """Return the rows by index, counted from `offset`; raise InvalidAnswer unless there is one for each item."""
    rows = sorted(rows, key=lambda row: row.index)
    if [row.index for row in rows] != list(range(len(ids))):
        raise InvalidAnswer(f"data: {len(rows)} rows do not match {len(ids)} items one to one")
    return tuple(replace(row, index=row.index + offset) for row in rows)


def parse_score(body: bytes, ids: Sequence[str | None], offset: int) -> t.ScoreResult:
    """Return the scores of items `offset` … `offset + len(ids) - 1` of a call, in the order of the items.

    Args:
        body: the answer's body.
        ids: the id of each item that was sent, None where it had none.
        offset: the number that is added to every index, so that indices count from the start of the call.

    Raises:
        InvalidAnswer: there is not exactly one row per item, or a row breaks the wire format.
    """
    answer = parse_object(body, "list")
    data = _sort_rows(_read_outcomes(_build_reader(t.Score), answer, "data", ids), ids, offset)
    return _read_fields(t.ScoreResult, answer, "answer", data=data, provenance=_read_provenance(answer))


def merge_scores(results: Iterable[t.ScoreResult]) -> t.ScoreResult:
    """Return the chunks of one call, at least one, as one result whose rows are sorted by index.

    Raises:
        FingerprintChanged: two chunks were scored by different models.
    """
    parts = list(results)
    for part in parts:
        check_fingerprint(parts[0].fingerprint, part.fingerprint)
    data = sorted((row for part in parts for row in part.data), key=lambda row: row.index)
    return replace(parts[0], data=tuple(data))


def merge_renders(results: Iterable[r.RenderResult]) -> r.RenderResult:
    """Return the chunks of one call as one result, in their order."""
    return r.RenderResult(tuple(row for part in results for row in part.data))


def check_fingerprint(first: str | None, second: str) -> str:
    """Return `second`; raise FingerprintChanged if `first` is not None and differs from it."""
    if first is not None and first != second:
        raise FingerprintChanged(first, second)
    return second


def parse_rank(body: bytes, ids: Sequence[str | None], top_n: int | None) -> r.RankResult:
    """Return the ranking of completions.

    Args:
        body: the answer's body.
        ids: the id of each completion that was sent, None where it had none.
        top_n: the most completions that the ranking may have; None for all.

    Raises:
        InvalidAnswer: a completion is missing or occurs twice, the order is wrong, or a row breaks the wire format.
    """
    answer = parse_object(body, "rank")
    ranked = _read_outcomes(_build_reader(r.RankedCompletion), answer, "results", ids)
    failed = _read_outcomes(_build_reader(r.RankedCompletion), answer, "errors", ids)
    results = tuple(row for row in ranked if isinstance(row, r.RankedCompletion))
    errors = tuple(row for row in failed if isinstance(row, t.ScoreFailure))
    expected = min(len(ids) - len(errors), len(ids) if top_n is None else top_n)
    once = len({row.index for row in results} | {row.index for row in errors}) == len(results) + len(errors)
    if not once or (len(ranked), len(failed), len(results)) != (len(results), len(errors), expected):
        raise InvalidAnswer(f"{len(ranked)} results and {len(failed)} errors do not match {len(ids)} completions")
    if any(above.score < below.score for above, below in pairwise(results)):
        raise InvalidAnswer("results: they are not sorted by score, highest first")
    known = {"results": results, "errors": errors, "provenance": _read_provenance(answer)}
    return _read_fields(r.RankResult, answer, "answer", **known)


def parse_comparison(body: bytes) -> r.Comparison:
    """Return the comparison of two completions; raise InvalidAnswer where it breaks the wire format."""
    answer = parse_object(body, "comparison")
    signals = {}
    for name, value in _check_object(answer.get("signals"), "signals").items():
        where = f"signals.{name}"
        row = _check_object(value, where)
        a, b = (_read_fields(t.SignalValue, row.get(side), f"{where}.{side}") for side in ("a", "b"))
        signals[name] = _read_fields(r.SignalComparison, row, where, a=a, b=b)
    blends = _check_object(answer.get("blends"), "blends")
    margins = {name: _check_object(row, f"blends.{name}").get("margin") for name, row in blends.items()}
    return r.Comparison(signals, _read_numbers(margins, "blends"), _read_provenance(answer))


def parse_render(body: bytes, ids: Sequence[str | None], offset: int) -> r.RenderResult:
    """Return how the items of a call are read; the arguments are those of `parse_score`.

    Raises:
        InvalidAnswer: there is not exactly one row per item, or a row breaks the wire format.
    """
    rows = _read_outcomes(_read_rendered_item, parse_object(body, "list"), "data", ids)
    return r.RenderResult(_sort_rows(rows, ids, offset))


def _read_rendered_item(row: Row, where: str) -> r.RenderedItem:
    given = _check_object(row.get("signals"), f"{where}.signals")
    signals = {name: _read_rendered_signal(value, f"{where}.signals.{name}") for name, value in given.items()}
    return _read_fields(r.RenderedItem, row, where, signals=signals)


def _read_rendered_signal(value: object, where: str) -> r.RenderedSignal:
    row = _check_object(value, where)
    ids, position = row.get("ids"), _check_object(row.get("score_position"), f"{where}.score_position")
    if not isinstance(ids, list):
        raise InvalidAnswer(f"{where}.ids: expected a list, got {_show(ids)}")
    known: dict[str, object] = {"ids": tuple(_check_value(token, int, f"{where}.ids") for token in ids)}
    for name, kind in (("policy", str), ("start", int), ("end", int)):
        known[f"score_{name}"] = _check_value(position.get(name), kind, f"{where}.score_position.{name}")
    return _read_fields(r.RenderedSignal, row, where, **known)


def parse_models(body: bytes) -> tuple[r.ModelCard, ...]:
    """Return the signals and blends that are served; raise InvalidAnswer where the list breaks the wire format."""
    rows = _read_rows(parse_object(body, "list"), "data")
    return tuple(_read_fields(r.ModelCard, row, f"data[{n}]", details=row) for n, row in enumerate(rows))


def outcome_to_wire(outcome: t.Score | t.ScoreFailure | r.RenderedItem) -> dict[str, object]:
    """Return a row as the server wrote it; fields that the server omits are omitted."""
    row = asdict(outcome)
    if row["id"] is None:
        del row["id"]
    for signal in row.get("signals", {}).values():
        _drop_none(signal, "prob")
    return row


def comparison_to_wire(comparison: r.Comparison) -> dict[str, object]:
    """Return a comparison as the server wrote it, without the answer's id and time, which the client does not keep."""
    row = asdict(comparison)
    for signal in row["signals"].values():
        _drop_none(signal, "prob_a")
        _drop_none(signal["a"], "prob")
        _drop_none(signal["b"], "prob")
    row["blends"] = {name: {"margin": margin} for name, margin in row["blends"].items()}
    _drop_none(row["provenance"], "blend")
    return {"object": "comparison", **row}


def _drop_none(row: dict[str, object], name: str) -> None:
    if name in row and row[name] is None:
        del row[name]
