"""The wire without a socket: questions to bytes, bytes to checked answers, chunks put together."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from types import NoneType
from typing import Generic, TypeAlias, TypeVar, get_args

from assay_client import types as t
from assay_client.errors import FingerprintChanged, InvalidAnswer, InvalidInput

EXCERPT_CHARS = 80  # of a wrong value, in an error message

ItemLike: TypeAlias = t.Item | tuple[t.Prompt, str] | Mapping[str, object]
CompletionLike: TypeAlias = str | Mapping[str, str]
Row: TypeAlias = Mapping[str, object]
T = TypeVar("T")
ScoreT = TypeVar("ScoreT", bound=t.Score)


@dataclass(frozen=True)
class Call(Generic[T]):
    """One logical request: where it goes, what it says (None for GET), and how its answer is read."""

    path: str
    payload: Row | None
    parse: Callable[[bytes], T]

    def body(self) -> bytes | None:
        """The payload as UTF-8 JSON; raises InvalidInput where it cannot be (lone surrogates)."""
        if self.payload is None:
            return None
        try:
            return json.dumps(self.payload, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the request cannot be sent as JSON: {error}") from error


def score_calls(items: Iterable[ItemLike], options: Row, chunk_size: int) -> list[Call[t.ScoreResult]]:
    """One call per `chunk_size` items, in order; one without items if there are none; raises InvalidInput."""
    rows = [_item(item, index) for index, item in enumerate(items)]
    calls = []
    for start in range(0, max(len(rows), 1), chunk_size):
        part = rows[start : start + chunk_size]
        payload = {**options, "items": [item.to_wire() for item in part]}
        parse = partial(parse_score, ids=[item.id for item in part], offset=start)
        calls.append(Call("/v1/score", payload, parse))
    return calls


def rank_call(prompt: t.Prompt, completions: Sequence[CompletionLike], options: Row) -> Call[t.RankResult]:
    """The call that ranks `completions`; raises InvalidInput as `score_calls` does."""
    items = []
    for index, completion in enumerate(completions):
        row = {"completion": completion} if isinstance(completion, str) else completion
        if not isinstance(row, Mapping) or not row.keys() <= {"completion", "finish_reason", "id"}:
            raise InvalidInput(f"completions[{index}]: text or {{`completion`, `finish_reason`?, `id`?}}")
        items.append(_item({"prompt": "", **row}, index, "completions"))
    rows = [{name: value for name, value in item.to_wire().items() if name != "prompt"} for item in items]
    payload = {**options, "prompt": t.prompt_to_wire(prompt), "completions": rows}
    top_n = options.get("top_n")
    assert top_n is None or isinstance(top_n, int)
    return Call("/v1/rank", payload, partial(parse_rank, ids=[item.id for item in items], top_n=top_n))


def compare_call(prompt: t.Prompt, a: str, b: str) -> Call[t.Comparison]:
    """The call that compares completion `a` with `b`."""
    return Call("/v1/compare", {"prompt": t.prompt_to_wire(prompt), "a": a, "b": b}, parse_comparison)


def options(
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
    truncation: t.Truncation | None = None,
    top_n: int | None = None,
) -> Row:
    """The part of a payload that is not text; what is None is left out.

    Raises:
        InvalidInput: both `model` and `weights`, a weight that is not finite, or a value out of range.
    """
    if model is not None and weights is not None:
        raise InvalidInput("`model` and `weights` exclude each other")
    for name, weight in (weights or {}).items():
        if _finite(weight) is None:
            raise InvalidInput(f"weight of `{name}` must be a finite number")
    if truncation is not None and truncation not in get_args(t.Truncation):
        raise InvalidInput('`truncation` must be "error" or "prompt_left"')
    if top_n is not None and top_n < 1:
        raise InvalidInput("`top_n` must be at least 1")
    given = {"model": model, "weights": weights and dict(weights), "truncation": truncation, "top_n": top_n}
    return {name: value for name, value in given.items() if value is not None}


def _item(value: object, index: int, name: str = "items") -> t.Item:
    try:
        return t.Item.of(value)
    except InvalidInput as error:
        raise InvalidInput(f"{name}[{index}]: {error}") from None


# --- Answers. Unknown fields are ignored, so that an older client reads a newer server; wrong ones never are.


def _finite(value: object) -> float | None:
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
    number = _finite(value)
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


def _outcomes(kind: type[ScoreT], answer: Row, name: str, ids: Sequence[str | None]) -> list[ScoreT | t.ScoreFailure]:
    """The rows under `name`, scored or failed, each about an item that was asked for."""
    return [_outcome(kind, row, ids, f"{name}[{n}]") for n, row in enumerate(_rows(answer, name))]


def _outcome(kind: type[ScoreT], row: Row, ids: Sequence[str | None], what: str) -> ScoreT | t.ScoreFailure:
    index = row.get("index")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(ids):
        raise InvalidAnswer(f"{what}: index {str(index)[:EXCERPT_CHARS]!r} of {len(ids)} items")
    if row.get("id") != ids[index]:
        raise InvalidAnswer(f"{what}: the id of item {index} came back changed")
    if row.get("error") is None:
        return _read(kind, row, what, signals=_each(t.SignalValue, row.get("signals"), f"{what}.signals"))
    if row.get("score") is not None:
        raise InvalidAnswer(f"{what}: both a score and an error")
    return t.ScoreFailure(index, ids[index], _read(t.ItemError, row["error"], f"{what}.error"))


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
    rows = sorted(_outcomes(t.Score, answer, "data", ids), key=lambda row: row.index)
    if [row.index for row in rows] != list(range(len(ids))):
        raise InvalidAnswer(f"data: {len(rows)} rows, and not one for each of {len(ids)} items")
    data = tuple(replace(row, index=row.index + offset) for row in rows)
    return _read(t.ScoreResult, answer, "answer", data=data, provenance=_provenance(answer))


def merge(results: Iterable[t.ScoreResult]) -> t.ScoreResult:
    """The chunks of one call as one result, by index; at least one chunk.

    Raises:
        FingerprintChanged: two chunks were scored by different models.
    """
    parts = list(results)
    for part in parts:
        same_fingerprint(parts[0].fingerprint, part.fingerprint)
    data = sorted((row for part in parts for row in part.data), key=lambda row: row.index)
    return replace(parts[0], data=tuple(data))


def same_fingerprint(first: str | None, second: str) -> str:
    """`second`; raises FingerprintChanged if there is a `first` and it differs."""
    if first is not None and first != second:
        raise FingerprintChanged(first, second)
    return second


def parse_rank(body: bytes, ids: Sequence[str | None], top_n: int | None) -> t.RankResult:
    """The ranking of `len(ids)` completions.

    Raises:
        InvalidAnswer: a completion is missing or there twice, the order is wrong, or a row breaks the wire.
    """
    answer = parse_object(body, "rank")
    ranked = _outcomes(t.RankedCompletion, answer, "results", ids)
    failed = _outcomes(t.RankedCompletion, answer, "errors", ids)
    results = tuple(row for row in ranked if isinstance(row, t.RankedCompletion))
    errors = tuple(row for row in failed if isinstance(row, t.ScoreFailure))
    expected = min(len(ids) - len(errors), len(ids) if top_n is None else top_n)
    once = len({row.index for row in results} | {row.index for row in errors}) == len(results) + len(errors)
    if not once or (len(ranked), len(failed), len(results)) != (len(results), len(errors), expected):
        raise InvalidAnswer(f"{len(ranked)} results, {len(failed)} errors do not fit {len(ids)} completions")
    if any(above.score < below.score for above, below in pairwise(results)):
        raise InvalidAnswer("results: not sorted by score")
    known = {"results": results, "errors": errors, "provenance": _provenance(answer)}
    return _read(t.RankResult, answer, "answer", **known)


def parse_comparison(body: bytes) -> t.Comparison:
    """The comparison of two completions; raises InvalidAnswer where it breaks the wire."""
    answer = parse_object(body, "comparison")
    signals = {}
    for name, value in _row(answer.get("signals"), "signals").items():
        row, what = _row(value, f"signals.{name}"), f"signals.{name}"
        a, b = (_read(t.SignalValue, row.get(side), f"{what}.{side}") for side in ("a", "b"))
        signals[name] = _read(t.SignalComparison, row, what, a=a, b=b)
    blends = _row(answer.get("blends"), "blends")
    margins = _numbers({name: _row(row, "blends").get("margin") for name, row in blends.items()}, "blends")
    return t.Comparison(signals, margins, _provenance(answer))


def parse_models(body: bytes) -> tuple[t.ModelCard, ...]:
    """The signals and blends that are served; raises InvalidAnswer where it breaks the wire."""
    rows = _rows(parse_object(body, "list"), "data")
    return tuple(_read(t.ModelCard, row, f"data[{n}]", details=row) for n, row in enumerate(rows))


MODELS = Call("/v1/models", None, parse_models)
INFO = Call("/info", None, parse_object)
READY = Call("/ready", None, parse_object)
