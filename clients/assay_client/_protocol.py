"""Requests as bytes, without a socket; each knows how its answer is read."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeAlias, TypeVar, get_args

from assay_client import results as r
from assay_client import types as t
from assay_client._answers import (
    Row,
    finite,
    parse_comparison,
    parse_models,
    parse_object,
    parse_rank,
    parse_render,
    parse_score,
)
from assay_client.errors import InvalidInput

ItemLike: TypeAlias = (
    t.Item | tuple[t.Prompt, t.Completion] | tuple[t.Prompt, t.Completion, t.FinishReason | None] | Mapping[str, object]
)
CompletionLike: TypeAlias = t.Completion | Mapping[str, object]
T = TypeVar("T")


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
    return _item_calls("/v1/score", parse_score, items, options, chunk_size)


def render_calls(items: Iterable[ItemLike], options: Row, chunk_size: int) -> list[Call[r.RenderResult]]:
    """Return the calls that show how items are read, in chunks as `score_calls`; raises InvalidInput."""
    return _item_calls("/v1/render", parse_render, items, options, chunk_size)


def _item_calls(
    path: str, parse: Callable[..., T], items: Iterable[ItemLike], options: Row, chunk_size: int
) -> list[Call[T]]:
    rows = [_item(item, index) for index, item in enumerate(items)]
    calls = []
    for start in range(0, max(len(rows), 1), chunk_size):
        part = rows[start : start + chunk_size]
        payload = {**options, "items": [item.to_wire() for item in part]}
        calls.append(Call(path, payload, partial(parse, ids=[item.id for item in part], offset=start)))
    return calls


def rank_call(prompt: t.Prompt, completions: Sequence[CompletionLike], options: Row) -> Call[r.RankResult]:
    """The call that ranks `completions`; raises InvalidInput as `score_calls` does."""
    items = []
    for index, completion in enumerate(completions):
        row = completion if isinstance(completion, Mapping) else {"completion": completion}
        if not row.keys() <= {"completion", "finish_reason", "id"}:
            raise InvalidInput(f"completions[{index}]: text or {{`completion`, `finish_reason`?, `id`?}}")
        items.append(_item({"prompt": "", **row}, index, "completions"))
    rows = [{name: value for name, value in item.to_wire().items() if name != "prompt"} for item in items]
    payload = {**options, "prompt": t.prompt_to_wire(prompt), "completions": rows}
    top_n = options.get("top_n")
    assert top_n is None or isinstance(top_n, int)
    return Call("/v1/rank", payload, partial(parse_rank, ids=[item.id for item in items], top_n=top_n))


def compare_call(prompt: t.Prompt, a: str, b: str, options: Row) -> Call[r.Comparison]:
    """The call that compares completion `a` with `b`."""
    return Call("/v1/compare", {**options, "prompt": t.prompt_to_wire(prompt), "a": a, "b": b}, parse_comparison)


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
        if finite(weight) is None:
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


MODELS = Call("/v1/models", None, parse_models)
INFO = Call("/info", None, parse_object)
READY = Call("/ready", None, parse_object)
