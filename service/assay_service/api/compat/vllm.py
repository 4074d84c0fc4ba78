"""Speak vLLM's wire for pooling models: `/classify`, `/pooling`, `/score` and `/rerank`, as its server answers them.

Source: https://github.com/vllm-project/vllm/tree/main/vllm/entrypoints/pooling, `protocol.py` of each endpoint.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from assay_service.api.compat.openai_shapes import (
    Encoding,
    Input,
    Texts,
    build_usage,
    encode_value,
    list_models,
    list_texts,
    name_entries,
    read_entries,
)
from assay_service.api.compat.wire import ANY, Context, Wire, WireBody, WireContext, WireScore, make_router
from assay_service.api.messages import build_items
from assay_service.api.refusals import Refusal
from assay_service.api.schemas import ChatMessage, ScoreItem, Text
from assay_service.api.scoring import check_completions, check_count
from assay_service.api.sources import ItemSource
from assay_service.scoring.blend import Blend, compute_probability, rank_scores
from assay_service.scoring.item import Item

_TYPES = {
    400: "BadRequestError",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFoundError",
    413: "BadRequestError",
    429: "Too Many Requests",
    503: "Service Unavailable",
}


def build_error(refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error; vLLM answers 400 where Assay answers 422, and `code` is the status."""
    status = 400 if refusal.status == 422 else refusal.status
    kind = _TYPES.get(status, "InternalServerError")
    return status, {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": status}}


WIRE = Wire(
    name="vllm",
    title="vLLM",
    activation="sigmoid; `use_activation: false` gives the score",
    overload_status=503,
    build_error=build_error,
)
router = make_router(WIRE)


class _Body(WireBody):
    """Fields that all endpoints share.

    `activation` and `softmax` are former names of `use_activation`, which vLLM now ignores silently.
    """

    ignored: ClassVar[Mapping[str, object]] = {
        **dict.fromkeys(("user", "request_id", "priority", "cache_salt", "truncation_side"), ANY),
        "padding": ("do_not_pad",),
        "encoding_format": ("float",),
        "mm_processor_kwargs": (),
        "truncate_prompt_tokens": (),
    }

    model: Annotated[Text, Field(max_length=1024)] | None = None
    use_activation: bool | None = None
    activation: bool | None = None
    softmax: bool | None = None

    @model_validator(mode="after")
    def _check_activation(self) -> "_Body":
        if len({self.use_activation, self.activation, self.softmax} - {None}) > 1:
            raise ValueError("`activation` and `softmax` are former names of `use_activation`; send only the latter")
        return self

    def convert(self, score: float) -> float:
        """Return a score as the request asks for it: its sigmoid, or the score itself."""
        is_raw = False in (self.use_activation, self.activation, self.softmax)
        return score if is_raw else compute_probability(score)


class InputBody(_Body):
    """Body of `POST /classify`: rendered conversations in `input`, or one conversation in `messages`."""

    ignored: ClassVar[Mapping[str, object]] = {
        **_Body.ignored,
        "add_generation_prompt": (False,),
        "continue_final_message": (False,),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "media_io_kwargs": ({},),
    }

    input: Input | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | None = None
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _check_form(self) -> "InputBody":
        if (self.input is None) == (self.messages is None):
            raise ValueError("set either `input` or `messages`")
        # Text gets the special tokens of the template in any case, but `messages` would get a second BOS.
        if self.messages is not None and self.add_special_tokens:
            raise ValueError("`add_special_tokens` would add a second BOS to `messages`; remove it")
        return self


class PoolingBody(InputBody):
    """Body of `POST /pooling`."""

    ignored: ClassVar[Mapping[str, object]] = {
        **InputBody.ignored,
        "dimensions": (),
        "embed_dtype": ("float32",),
        "endianness": ("native", "little"),
    }

    task: Literal["classify"] | None = None
    encoding_format: Encoding | None = None  # null is `float`, as for both servers


_PAIRS = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))


class _PairBody(_Body):
    ignored: ClassVar[Mapping[str, object]] = {
        **_Body.ignored,
        "max_tokens_per_query": (0,),
        "max_tokens_per_doc": (0,),
        "instruction": (),
        "chat_template_kwargs": ({},),
    }


class ScoreBody(_PairBody):
    """Body of `POST /score`: prompts and completions as plain texts, one prompt for all or as many as completions."""

    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None

    @model_validator(mode="after")
    def _check_pairs(self) -> "ScoreBody":
        first, second = self.find_fields()
        prompts, completions = len(list_texts(getattr(self, first))), len(list_texts(getattr(self, second)))
        if prompts not in (1, completions):
            raise ValueError(f"`{first}` has {prompts} texts and `{second}` has {completions}; send 1:1, 1:N or N:N")
        return self

    def find_fields(self) -> tuple[str, str]:
        """Return the names of the fields that hold prompts and completions.

        Raises:
            ValueError: the body has not exactly one pair of fields.
        """
        given = {name for pair in _PAIRS for name in pair if getattr(self, name) is not None}
        for pair in _PAIRS:
            if given == set(pair):
                return pair
        raise ValueError(f"send one of the pairs {', '.join(f'`{a}` and `{b}`' for a, b in _PAIRS)}")


class RerankBody(_PairBody):
    """Body of `POST /rerank`: a prompt as `query`, its completions as `documents`, all plain texts."""

    query: Text
    documents: Texts
    top_n: Annotated[int, Field(ge=0)] = 0


@router.post("/classify")
@router.post("/v1/classify")
async def classify(body: InputBody, context: Context) -> dict[str, Any]:
    """Score rendered conversations; without activation, `probs` holds scores."""
    blend, scored = await _score_input(body, context)
    rows = [
        {"index": index, "label": "LABEL_0", "probs": [body.convert(one.score)], "num_classes": 1}
        for index, one in enumerate(scored)
    ]
    return _build_list(context, body, blend, "classify", rows, scored)


@router.post("/pooling")
@router.post("/v1/pooling")
async def pool(body: PoolingBody, context: Context) -> dict[str, Any]:
    """Score rendered conversations, as vLLM's documentation recommends for reward models."""
    blend, scored = await _score_input(body, context)
    values = [body.convert(one.score) for one in scored]
    rows = [
        {"index": index, "object": "pooling", "data": encode_value(value, body.encoding_format)}
        for index, value in enumerate(values)
    ]
    return _build_list(context, body, blend, "pooling", rows, scored)


@router.post("/score")
@router.post("/v1/score")
async def score(body: ScoreBody, context: Context) -> dict[str, Any]:
    """Score pairs of a prompt and a completion."""
    first, second = body.find_fields()
    prompts, completions = list_texts(getattr(body, first)), list_texts(getattr(body, second))
    blend, scored = await _score_pairs(context, body, prompts, completions, second)
    rows = [{"index": index, "object": "score", "score": body.convert(one.score)} for index, one in enumerate(scored)]
    return _build_list(context, body, blend, "score", rows, scored)


@router.post("/rerank")
@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def rerank(body: RerankBody, context: Context) -> dict[str, Any]:
    """Rank the completions of a prompt by score, also where the sigmoid of several scores is the same number."""
    documents = list_texts(body.documents)
    blend, scored = await _score_pairs(context, body, [body.query], documents, "documents")
    places = rank_scores({index: one.score for index, one in enumerate(scored)})
    results = [
        {
            "index": place.index,
            "document": {"text": documents[place.index], "multi_modal": None},
            "relevance_score": body.convert(scored[place.index].score),
        }
        for place in places[: body.top_n or None]
    ]
    tokens = sum(one.tokens for one in scored)
    return {
        "id": f"score-{context.request_id}",
        "model": body.model or blend.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": results,
    }


@router.get("/v1/models")
async def models(context: Context) -> dict[str, Any]:
    """List the served names, as vLLM's clients ask for them."""
    return list_models(context)


async def _score_input(body: InputBody, context: WireContext) -> tuple[Blend, list[WireScore]]:
    blend = context.find_blend(body.model)
    if body.input is not None:
        items = read_entries(context, blend, body.input, "input")
        names = name_entries(body.input, "input")
    else:
        items, names = [*build_items([ScoreItem.model_construct(messages=body.messages)])], ["messages"]
    return blend, await context.score(items, blend, names)


async def _score_pairs(
    context: WireContext, body: _PairBody, prompts: Sequence[str], completions: Sequence[str], field: str
) -> tuple[Blend, list[WireScore]]:
    """Score each completion with its prompt, or all with the only one."""
    check = check_completions if len(prompts) == 1 else check_count
    check(context.request, len(completions), field)
    blend = context.find_blend(body.model)
    # As vLLM reads 1:N; the engine computes a shared prompt once.
    if len(prompts) == 1:
        prompts = [*prompts] * len(completions)
    items: list[ItemSource] = [Item.of(p, c) for p, c in zip(prompts, completions, strict=True)]
    return blend, await context.score(items, blend, [f"{field}[{index}]" for index in range(len(items))])


def _build_list(
    context: WireContext,
    body: _Body,
    blend: Blend,
    prefix: str,
    rows: list[dict[str, Any]],
    scored: Sequence[WireScore],
) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{context.request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": body.model or blend.name,
        "data": rows,
        "usage": build_usage(sum(one.tokens for one in scored)),
    }
