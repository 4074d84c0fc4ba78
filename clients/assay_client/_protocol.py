"""Build requests without a socket; each request knows how its answer is read."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from typing import Generic, TypeAlias, TypeVar, get_args

from assay_client import messages as m
from assay_client import results as r
from assay_client import types as t
from assay_client._answers import (
    Row,
    parse_comparison,
    parse_models,
    parse_object,
    parse_rank,
    parse_render,
    parse_score,
)
from assay_client.affinity import affinity_key
from assay_client.errors import InvalidInput

ItemLike: TypeAlias = (
    t.Item | tuple[m.Prompt, m.Completion] | tuple[m.Prompt, m.Completion, t.FinishReason | None] | Mapping[str, object]
)
CompletionLike: TypeAlias = m.Completion | Mapping[str, object]
FindHome: TypeAlias = Callable[[str], str]
T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One logical request.

    Attributes:
        path: the path of the endpoint.
        payload: the JSON object that is sent; None for a GET request.
        parse: the function that reads the answer's body; it raises InvalidAnswer.
        key: the affinity key of the prompt, or of the first item's prompt; None where there is no prompt.
    """

    path: str
    payload: Row | None
    parse: Callable[[bytes], T]
    key: str | None = None

    def encode_body(self) -> bytes | None:
        """Return the payload as UTF-8 JSON; None for a GET request.

        Raises:
            InvalidInput: a text has no UTF-8 form because it holds a lone surrogate, or a value has no JSON form.
        """
        if self.payload is None:
            return None
        # Without ASCII escapes other scripts need fewer bytes, and a lone surrogate fails here, before it is sent.
        try:
            return json.dumps(self.payload, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the request cannot be sent as JSON: {error}") from error


def build_score_calls(
    items: Iterable[ItemLike], options: Row, chunk_size: int, find_home: FindHome | None = None
) -> list[Call[t.ScoreResult]]:
    """Return the calls that score items; each keeps the order of its items.

    Args:
        items: the items, in any form that `Item.of` reads. An empty list makes one call without items.
        options: the part of each payload that is not text, as `build_options` returns it.
        chunk_size: the most items of one call.
        find_home: the function that returns the endpoint of a key; items of one endpoint make up calls of their own.
            None puts the items into calls in their order.

    Raises:
        InvalidInput: an item is malformed, or has token ids without `tokenizer_sha256`; the message names its index.
    """
    return _build_item_calls("/v1/score", parse_score, items, options, chunk_size, find_home)


def build_render_calls(
    items: Iterable[ItemLike], options: Row, chunk_size: int, find_home: FindHome | None = None
) -> list[Call[r.RenderResult]]:
    """Return the calls that show how items are read; the arguments and errors are those of `build_score_calls`."""
    return _build_item_calls("/v1/render", parse_render, items, options, chunk_size, find_home)


def _build_item_calls(
    path: str,
    parse: Callable[..., T],
    items: Iterable[ItemLike],
    options: Row,
    chunk_size: int,
    find_home: FindHome | None,
) -> list[Call[T]]:
    rows = [_read_item(item, index) for index, item in enumerate(items)]
    _check_tokenizer(rows, options)
    calls = []
    for part in _split(rows, chunk_size, find_home):
        payload = {**options, "items": [rows[n].to_wire() for n in part]}
        ids = [rows[n].id for n in part]
        key = _compute_key(rows[part[0]], part[0]) if part else None
        calls.append(Call(path, payload, partial(parse, ids=ids, positions=part), key))
    return calls


def _check_tokenizer(rows: Sequence[t.Item], options: Row) -> None:
    index = next((index for index, row in enumerate(rows) if row.prompt_ids is not None), None)
    if index is not None and "tokenizer_sha256" not in options:
        raise InvalidInput(
            f"items[{index}]: `prompt_ids` needs `tokenizer_sha256`, the output of `sha256sum tokenizer.json`"
        )


def _split(rows: Sequence[t.Item], chunk_size: int, find_home: FindHome | None) -> Iterable[Sequence[int]]:
    """Return the positions of the items of each call; each position is in exactly one of them."""
    homes: dict[str, list[int]] = {}
    for n, row in enumerate(rows):
        homes.setdefault(find_home(_compute_key(row, n)) if find_home else "", []).append(n)
    # An empty list is sent too, because its result needs the server's provenance.
    parts = [[places[n : n + chunk_size] for n in range(0, len(places), chunk_size)] for places in homes.values()]
    # In turn, so that all endpoints work at the same time.
    in_turn = [part for part in chain.from_iterable(zip_longest(*parts)) if part is not None]
    return in_turn or [[]]


def _compute_key(item: t.Item, index: int) -> str:
    prompt = item.messages[:-1] if item.messages is not None else item.prompt
    start = item.prompt_ids if prompt is None else prompt
    assert start is not None
    try:
        return affinity_key(start)
    except InvalidInput as error:
        raise InvalidInput(f"items[{index}]: {error}") from error


def build_rank_call(prompt: m.Prompt, completions: Sequence[CompletionLike], options: Row) -> Call[r.RankResult]:
    """Return the call that ranks completions.

    Args:
        prompt: the prompt that all completions answer.
        completions: texts, or mappings with `completion` and optionally `finish_reason` and `id`.
        options: the part of the payload that is not text, as `build_options` returns it.

    Raises:
        InvalidInput: a completion or the prompt is malformed.
    """
    items = []
    for index, completion in enumerate(completions):
        row = completion if isinstance(completion, Mapping) else {"completion": completion}
        if not row.keys() <= {"completion", "finish_reason", "id"}:
            raise InvalidInput(
                f"completions[{index}]: a completion is text, or an object with `completion` and optionally "
                "`finish_reason` and `id`"
            )
        # The prompt is sent once for all; an empty one stands in for it, because an item cannot be checked without.
        items.append(_read_item({"prompt": "", **row}, index, "completions"))
    rows = [{name: value for name, value in item.to_wire().items() if name != "prompt"} for item in items]
    payload = {**options, "prompt": m.encode_prompt(prompt), "completions": rows}
    top_n = options.get("top_n")
    assert top_n is None or isinstance(top_n, int)
    parse = partial(parse_rank, ids=[item.id for item in items], top_n=top_n)
    return Call("/v1/rank", payload, parse, affinity_key(prompt))


def build_compare_call(prompt: m.Prompt, a: str, b: str, options: Row) -> Call[r.Comparison]:
    """Return the call that compares completion `a` with `b`; raise InvalidInput if the prompt is malformed."""
    payload = {**options, "prompt": m.encode_prompt(prompt), "a": a, "b": b}
    return Call("/v1/compare", payload, parse_comparison, affinity_key(prompt))


def build_options(
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
    truncation: t.Truncation | None = None,
    top_n: int | None = None,
    tokenizer_sha256: str | None = None,
) -> Row:
    """Return the part of a payload that is not text; options that are None are omitted.

    Args:
        model: the signal or blend to score by.
        weights: the weight of each signal, instead of a model.
        truncation: "error" or "prompt_left".
        top_n: the most completions of a ranking.
        tokenizer_sha256: the hash of the `tokenizer.json` that gave the token ids.

    Raises:
        InvalidInput: both `model` and `weights` are given, a weight is not finite, a value is out of range, or the hash
            is not a SHA-256.
    """
    if model is not None and weights is not None:
        raise InvalidInput("`model` and `weights` exclude each other: give one of them")
    for name, weight in (weights or {}).items():
        if not _is_finite(weight):
            raise InvalidInput(f"the weight of `{name}` must be a finite number")
    if truncation is not None and truncation not in get_args(t.Truncation):
        raise InvalidInput('`truncation` must be "error" or "prompt_left"')
    if top_n is not None and top_n < 1:
        raise InvalidInput("`top_n` must be at least 1")
    if tokenizer_sha256 is not None:
        check_sha256(tokenizer_sha256)
    given = {
        "model": model,
        "weights": weights and dict(weights),
        "truncation": truncation,
        "top_n": top_n,
        "tokenizer_sha256": tokenizer_sha256,
    }
    return {name: value for name, value in given.items() if value is not None}


def check_sha256(value: object) -> None:
    """Check that a value is a SHA-256.

    Raises:
        InvalidInput: it is not; the message names `tokenizer_sha256`.
    """
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise InvalidInput(
            f"`tokenizer_sha256` must be 64 hexadecimal digits, the output of `sha256sum tokenizer.json`, not {value!r}"
        )


def _is_finite(value: object) -> bool:
    try:
        # Python's bool is an int, but JSON's true is not a number.
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int beyond any float
        return False


def _read_item(value: object, index: int, name: str = "items") -> t.Item:
    try:
        return t.Item.of(value)
    except InvalidInput as error:
        raise InvalidInput(f"{name}[{index}]: {error}") from None


MODELS = Call("/v1/models", None, parse_models)
INFO = Call("/info", None, parse_object)
READY = Call("/ready", None, parse_object)
