"""Define the answers as the service writes them, and decode them by msgspec.

The structs are made from the client's dataclasses, so that a new field of a dataclass is read and checked at once.
msgspec checks types exactly and skips unknown fields, so that an older client reads a newer server.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from types import GenericAlias, NoneType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args, get_origin

import msgspec
from msgspec.json import Decoder

from assay_client import provenance as p
from assay_client import results as r
from assay_client import types as t
from assay_client.errors import InvalidAnswer

EXCERPT_CHARS = 80  # the longest part of a wrong value that an error message shows

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0)]
# Structs exist only at run time, so that a checker of types knows neither them nor what they decode to.
Hint: TypeAlias = Any


def _build_struct(kind: type, **hints: Hint) -> Hint:
    """Return the struct that decodes a dataclass of the client; its ints are counts.

    A field that may be None may also be missing, because the service omits `id`, `prob` and `blend` where it has none.
    The dataclass itself cannot be decoded: msgspec demands every field that has no default.

    Args:
        kind: the dataclass.
        hints: the types of fields that differ on the wire or that it has besides; None for a field that it lacks.
    """
    known = {field.name: Count if field.type is int else field.type for field in fields(kind)} | hints
    rows = [(name, hint, None) if NoneType in get_args(hint) else (name, hint) for name, hint in known.items() if hint]
    return msgspec.defstruct(kind.__name__, rows, kw_only=True)


def _build_mapping(value: Hint) -> Hint:
    return GenericAlias(dict, (str, value))


def _build_list(value: Hint) -> Hint:
    return GenericAlias(list, (value,))


def _build_row(kind: type, signals: Hint, **hints: Hint) -> Hint:
    """Return the struct of a row about one item; whether a row may lack its values depends on its error."""
    # `index` is a plain int: `_answers` names the number of items if one is out of range, above or below.
    return _build_struct(kind, index=int, error=_ERROR | None, signals=_build_mapping(signals) | None, **hints)


_ERROR = _build_struct(t.ItemError)
_STEP = _build_struct(t.StepValue)
_SIGNAL = _build_struct(t.SignalValue, steps=_build_list(_STEP) | None)
_PENALTY = _build_struct(p.LengthPenalty)
_BLEND = _build_struct(p.Blend, length_penalty=_PENALTY | None)
_SIGNAL_PROVENANCE = _build_struct(p.SignalProvenance, preset=_build_struct(p.Preset) | None)
_PROVENANCE = _build_struct(p.Provenance, blend=_BLEND | None, signals=_build_mapping(_SIGNAL_PROVENANCE))
_SCORE = _build_row(t.Score, _SIGNAL, score=float | None)
_RANKED = _build_row(r.RankedCompletion, _SIGNAL, score=float | None)
_POSITION = msgspec.defstruct("ScorePosition", [("policy", str), ("start", Count), ("end", Count)])
_RENDERED_SIGNAL = _build_struct(
    r.RenderedSignal,
    ids=tuple[Count, ...],
    score_policy=None,
    score_start=None,
    score_end=None,
    score_position=_POSITION,
    steps=_build_list(_build_struct(r.RenderedStep)) | None,
    gate=Count | None,
)
# A rendered row has no score; it is read only so that one beside an error is refused.
_RENDERED = _build_row(r.RenderedItem, _RENDERED_SIGNAL, score=Any | None)
_COMPARED = _build_struct(r.SignalComparison, a=_SIGNAL, b=_SIGNAL)
_MARGIN = msgspec.defstruct("Margin", [("margin", float), ("length_penalty", _PENALTY | None, None)])

OBJECT: Decoder[dict[str, object]] = Decoder(dict[str, object])
SCORES: Decoder[Any] = Decoder(
    _build_struct(t.ScoreResult, object=Literal["list"], data=_build_list(_SCORE), provenance=_PROVENANCE)
)
RENDERS: Decoder[Any] = Decoder(_build_struct(r.RenderResult, object=Literal["list"], data=_build_list(_RENDERED)))
RANKING: Decoder[Any] = Decoder(
    _build_struct(
        r.RankResult,
        object=Literal["rank"],
        results=_build_list(_RANKED),
        errors=_build_list(_RANKED),
        provenance=_PROVENANCE,
    )
)
COMPARISON: Decoder[Any] = Decoder(
    _build_struct(
        r.Comparison,
        object=Literal["comparison"],
        signals=_build_mapping(_COMPARED),
        blends=_build_mapping(_MARGIN),
        length_penalties=None,
        provenance=_PROVENANCE,
    )
)
_CARD = _build_struct(r.ModelCard, details=None)
MODELS: Decoder[Any] = Decoder(msgspec.defstruct("Models", [("object", Literal["list"]), ("data", _build_list(_CARD))]))

DETAILS: Decoder[Any] = Decoder(msgspec.defstruct("Details", [("data", list[dict[str, object]])]))


def decode(body: bytes, decoder: Decoder[T]) -> T:
    """Return what `decoder` makes of an answer's body, whose floats are finite and whose counts are at least 0.

    Raises:
        InvalidAnswer: the body is not JSON in UTF-8, or a field is missing or has a wrong type. The message has the
            path of the field, and its value.
    """
    try:
        # Decoded here, because msgspec does not look at the bytes of fields that it skips.
        return decoder.decode(body.decode())
    except msgspec.ValidationError as error:
        raise InvalidAnswer(_describe_fault(body, decoder.type, "")) from error
    except (ValueError, RecursionError) as error:
        place = re.search(r"\(byte (\d+)\)", str(error))
        # msgspec gives only the place, so that NaN, which JSON does not have, would be an "invalid character".
        found = f": {_show(body[int(place[1]) :])}" if place else ""
        raise InvalidAnswer(f"the answer is not JSON: {error}{found}") from error


def _describe_fault(raw: bytes | msgspec.Raw, hint: Hint, where: str) -> str:
    """Return path, reason and value of the first fault of a value that `hint` refuses.

    msgspec's own path has `[...]` for the key of a mapping, and so lacks the name of the signal.
    """
    for step, part, kind in _list_parts(raw, hint):
        if _find_reason(part, kind):
            return _describe_fault(part, kind, where + step)
    reason = _find_reason(raw, hint) or ""
    return f"{where.removeprefix('.') or 'answer'}: {reason[:1].lower()}{reason[1:]} (value: {_show(bytes(raw))})"


def _find_reason(raw: bytes | msgspec.Raw, hint: Hint) -> str | None:
    """Return why a value is not of a type; None if it is."""
    try:
        msgspec.json.decode(raw, type=hint)
    except (ValueError, RecursionError) as error:
        origin: object = get_origin(hint)
        # msgspec repeats the wrong literal, and does not say which one was expected.
        return f"expected `{get_args(hint)[0]}`" if origin is Literal else str(error)
    return None


def _list_parts(raw: bytes | msgspec.Raw, hint: Hint) -> list[tuple[str, msgspec.Raw, Hint]]:
    """Return the step, the bytes and the type of each part of a value; none if the value is not such a container."""
    # Of an optional container, the container; `type | None` has it first.
    kind = get_args(hint)[0] if NoneType in get_args(hint) else hint
    origin = get_origin(kind) or kind
    if not isinstance(origin, type):
        return []
    try:
        if issubclass(origin, msgspec.Struct):
            known = {field.name: field.type for field in msgspec.structs.fields(origin)}
            named = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
            return [(f".{name}", part, known[name]) for name, part in named.items() if name in known]
        if issubclass(origin, Mapping):
            named = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
            return [(f".{name}", part, get_args(kind)[1]) for name, part in named.items()]
        if issubclass(origin, list | tuple):
            rows = msgspec.json.decode(raw, type=list[msgspec.Raw])
            return [(f"[{number}]", part, get_args(kind)[0]) for number, part in enumerate(rows)]
    except (ValueError, RecursionError):
        # Another type, or broken JSON after the fault: the reason then is that of the whole value.
        pass
    return []


def _show(raw: bytes) -> str:
    return raw[: 4 * EXCERPT_CHARS].decode(errors="replace")[:EXCERPT_CHARS]
