"""Answers of the service, read and checked: bytes to values.

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

EXCERPT_CHARS = 80  # of a wrong value, in an error message

Row: TypeAlias = Mapping[str, object]
T = TypeVar("T")
ScoreT = TypeVar("ScoreT", bound=t.Score)
OutcomeT = TypeVar("OutcomeT", bound=t.Score | r.RenderedItem | t.ScoreFailure)


def finite(value: object) -> float | None:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an int beyond any float
        pass
    return None


def _value(value: object, hint: object, what: str) -> object:
    """`value`, which must be what `hint` says: str, int (a count), float (finite), bool, or that or None."""
    kinds = get_args(hint) or (hint,)
    if value is None and NoneType in kinds:
        return None
    if float in kinds:
        return _number(value, what)
    if any(kind in kinds and isinstance(value, kind) for kind in (str, bool)):
        return value
    if int in kinds and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    names = " or ".join("count" if kind is int else kind.__name__ for kind in kinds)
    raise InvalidAnswer(f"{what}: expected {names}, got {str(value)[:EXCERPT_CHARS]!r}")


def _number(value: object, what: str) -> float:
    number = finite(value)
    if number is None:
        raise InvalidAnswer(f"{what}: expected a finite number, got {str(value)[:EXCERPT_CHARS]!r}")
    return number


def _read(kind: type[T], value: object, what: str, **known: object) -> T:
    """A dataclass from an object, each field checked against its annotation; `known` ones are not."""
    row = _row(value, what)
    for field in fields(kind):  # type: ignore[arg-type]  # every `kind` here is a dataclass
        if field.name not in known:
            known[field.name] = _value(row.get(field.name), field.type, f"{what}.{field.name}")
    return kind(**known)


def _row(value: object, what: str) -> Row:
    if isinstance(value, dict):
        return value
    raise InvalidAnswer(f"{what}: expected an object, got {type(value).__name__}")


def _rows(answer: Row, name: str) -> list[Row]:
    value = answer.get(name)
    if not isinstance(value, list):
        raise InvalidAnswer(f"{name}: expected a list, got {type(value).__name__}")
    return [_row(row, f"{name}[{index}]") for index, row in enumerate(value)]


def _each(kind: type[T], value: object, what: str) -> dict[str, T]:
    return {name: _read(kind, row, f"{what}.{name}") for name, row in _row(value, what).items()}


def parse_object(body: bytes, kind: str | None = None) -> Row:
    """The answer's JSON object, whose `object` is `kind`; raises InvalidAnswer for all else, NaN included."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidAnswer(f"the answer is not JSON: {error}") from error
    answer = _row(value, "answer")
    if kind is not None and answer.get("object") != kind:
        raise InvalidAnswer(f"expected an answer of type {kind}, got {str(answer.get('object'))[:EXCERPT_CHARS]}")
    return answer


def _numbers(value: object, what: str) -> dict[str, float]:
    return {name: _number(each, f"{what}.{name}") for name, each in _row(value, what).items()}


def _provenance(answer: Row) -> t.Provenance:
    row = _row(answer.get("provenance"), "provenance")
    blend = row.get("blend")
    if blend is not None:
        weights = _numbers(_row(blend, "provenance.blend").get("weights"), "provenance.blend.weights")
        blend = _read(t.Blend, blend, "provenance.blend", weights=weights)
    signals = _each(t.SignalProvenance, row.get("signals"), "provenance.signals")
    return _read(t.Provenance, row, "provenance", blend=blend, signals=signals)


def _outcomes(
    read: Callable[[Row, str], T], answer: Row, name: str, ids: Sequence[str | None]
) -> list[T | t.ScoreFailure]:
    """The rows under `name`, read or failed, each about an item that was asked for."""
    return [_outcome(read, row, ids, f"{name}[{n}]") for n, row in enumerate(_rows(answer, name))]


def _outcome(read: Callable[[Row, str], T], row: Row, ids: Sequence[str | None], what: str) -> T | t.ScoreFailure:
    index = row.get("index")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(ids):
        raise InvalidAnswer(f"{what}: index {str(index)[:EXCERPT_CHARS]!r} of {len(ids)} items")
    if row.get("id") != ids[index]:
        raise InvalidAnswer(f"{what}: the id of item {index} came back changed")
    if row.get("error") is None:
        return read(row, what)
    if row.get("score") is not None:
        raise InvalidAnswer(f"{what}: both a score and an error")
    return t.ScoreFailure(index, ids[index], _read(t.ItemError, row["error"], f"{what}.error"))


def _scored(kind: type[ScoreT]) -> Callable[[Row, str], ScoreT]:
    """Return what reads a row with a score as a `kind`."""
    return lambda row, what: _read(kind, row, what, signals=_each(t.SignalValue, row.get("signals"), f"{what}.signals"))


def _one_each(rows: list[OutcomeT], ids: Sequence[str | None], offset: int) -> tuple[OutcomeT, ...]:
    """The rows by index, counted from `offset`; raises InvalidAnswer if they are not one for each item."""
    rows = sorted(rows, key=lambda row: row.index)
    if [row.index for row in rows] != list(range(len(ids))):
        raise InvalidAnswer(f"data: {len(rows)} rows, and not one for each of {len(ids)} items")
    return tuple(replace(row, index=row.index + offset) for row in rows)


def parse_score(body: bytes, ids: Sequence[str | None], offset: int) -> t.ScoreResult:
    """The answer about items `offset` … `offset + len(ids) - 1` of a call, in their order.

    Args:
        body: the answer.
        ids: the id of each item that was sent, None where it had none.
        offset: what is added to every index, so that it counts from the start of the call.

    Raises:
        InvalidAnswer: not exactly one row per item, or a row that breaks the wire.
    """
    answer = parse_object(body, "list")
    data = _one_each(_outcomes(_scored(t.Score), answer, "data", ids), ids, offset)
    return _read(t.ScoreResult, answer, "answer", data=data, provenance=_provenance(answer))


def merge_scores(results: Iterable[t.ScoreResult]) -> t.ScoreResult:
    """The chunks of one call as one result, by index; at least one chunk.

    Raises:
        FingerprintChanged: two chunks were scored by different models.
    """
    parts = list(results)
    for part in parts:
        same_fingerprint(parts[0].fingerprint, part.fingerprint)
    data = sorted((row for part in parts for row in part.data), key=lambda row: row.index)
    return replace(parts[0], data=tuple(data))


def merge_renders(results: Iterable[r.RenderResult]) -> r.RenderResult:
    """Return the chunks of one call as one result, in their order."""
    return r.RenderResult(tuple(row for part in results for row in part.data))


def same_fingerprint(first: str | None, second: str) -> str:
    """`second`; raises FingerprintChanged if there is a `first` and it differs."""
    if first is not None and first != second:
        raise FingerprintChanged(first, second)
    return second


def parse_rank(body: bytes, ids: Sequence[str | None], top_n: int | None) -> r.RankResult:
    """The ranking of `len(ids)` completions.

    Raises:
        InvalidAnswer: a completion is missing or there twice, the order is wrong, or a row breaks the wire.
    """
    answer = parse_object(body, "rank")
    ranked = _outcomes(_scored(r.RankedCompletion), answer, "results", ids)
    failed = _outcomes(_scored(r.RankedCompletion), answer, "errors", ids)
    results = tuple(row for row in ranked if isinstance(row, r.RankedCompletion))
    errors = tuple(row for row in failed if isinstance(row, t.ScoreFailure))
    expected = min(len(ids) - len(errors), len(ids) if top_n is None else top_n)
    once = len({row.index for row in results} | {row.index for row in errors}) == len(results) + len(errors)
    if not once or (len(ranked), len(failed), len(results)) != (len(results), len(errors), expected):
        raise InvalidAnswer(f"{len(ranked)} results, {len(failed)} errors do not fit {len(ids)} completions")
    if any(above.score < below.score for above, below in pairwise(results)):
        raise InvalidAnswer("results: not sorted by score")
    known = {"results": results, "errors": errors, "provenance": _provenance(answer)}
    return _read(r.RankResult, answer, "answer", **known)


def parse_comparison(body: bytes) -> r.Comparison:
    """The comparison of two completions; raises InvalidAnswer where it breaks the wire."""
    answer = parse_object(body, "comparison")
    signals = {}
    for name, value in _row(answer.get("signals"), "signals").items():
        row, what = _row(value, f"signals.{name}"), f"signals.{name}"
        a, b = (_read(t.SignalValue, row.get(side), f"{what}.{side}") for side in ("a", "b"))
        signals[name] = _read(r.SignalComparison, row, what, a=a, b=b)
    blends = _row(answer.get("blends"), "blends")
    margins = _numbers({name: _row(row, "blends").get("margin") for name, row in blends.items()}, "blends")
    return r.Comparison(signals, margins, _provenance(answer))


def parse_render(body: bytes, ids: Sequence[str | None], offset: int) -> r.RenderResult:
    """Return how the items of a call are read, with indices counted from `offset`.

    Raises:
        InvalidAnswer: not exactly one row per item, ids that are no counts, or a row that breaks the wire.
    """
    rows = _outcomes(_rendered_item, parse_object(body, "list"), "data", ids)
    return r.RenderResult(_one_each(rows, ids, offset))


def _rendered_item(row: Row, what: str) -> r.RenderedItem:
    given = _row(row.get("signals"), f"{what}.signals")
    signals = {name: _rendered_signal(_row(one, what), f"{what}.signals.{name}") for name, one in given.items()}
    return _read(r.RenderedItem, row, what, signals=signals)


def _rendered_signal(row: Row, what: str) -> r.RenderedSignal:
    ids, position = row.get("ids"), _row(row.get("score_position"), f"{what}.score_position")
    if not isinstance(ids, list):
        raise InvalidAnswer(f"{what}.ids: expected a list, got {type(ids).__name__}")
    known: dict[str, object] = {"ids": tuple(_value(one, int, f"{what}.ids") for one in ids)}
    for name, kind in (("policy", str), ("start", int), ("end", int)):
        known[f"score_{name}"] = _value(position.get(name), kind, f"{what}.score_position.{name}")
    return _read(r.RenderedSignal, row, what, **known)


def parse_models(body: bytes) -> tuple[r.ModelCard, ...]:
    """The signals and blends that are served; raises InvalidAnswer where it breaks the wire."""
    rows = _rows(parse_object(body, "list"), "data")
    return tuple(_read(r.ModelCard, row, f"data[{n}]", details=row) for n, row in enumerate(rows))


def outcome_to_wire(outcome: t.Score | t.ScoreFailure | r.RenderedItem) -> dict[str, object]:
    """Return the server's row again: what it leaves out is left out."""
    row = asdict(outcome)
    if row["id"] is None:
        del row["id"]
    for signal in row.get("signals", {}).values():
        _drop_none(signal, "prob")
    return row


def comparison_to_wire(comparison: r.Comparison) -> dict[str, object]:
    """Return a comparison as the server answers it, as far as it is known here."""
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
