"""Speak SGLang's wire for reward models: `/v1/score`, `/v1/embeddings` and its own `/classify`.

SGLang applies no template, so every text is a rendered conversation. All answers hold the score without activation.

Source: https://github.com/sgl-project/sglang/tree/main/python/sglang/srt/entrypoints, `openai/protocol.py` and
`http_server.py`.
"""

import time
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from assay_service.api.compat.openai_shapes import (
    Encoding,
    IdInput,
    Input,
    Texts,
    build_usage,
    encode_value,
    list_entries,
    list_models,
    name_entries,
    read_entries,
)
from assay_service.api.compat.rendered import read_id_pairs, read_pairs
from assay_service.api.compat.wire import ANY, Context, Wire, WireBody, WireContext, make_router
from assay_service.api.refusals import Refusal
from assay_service.api.schemas import Text
from assay_service.api.scoring import check_completions
from assay_service.api.sources import ItemSource
from assay_service.errors import ServingError
from assay_service.scoring.blend import Blend

# SGLang's own value of `model` for requests that name none.
_UNNAMED = "default"


_TYPES = {401: "Unauthorized", 403: "Forbidden", 404: "NotFoundError"}


def build_error(refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error; SGLang answers 400 where Assay answers 422, and `code` is the status."""
    status = 400 if refusal.status == 422 else refusal.status
    kind = _TYPES.get(status, "BadRequestError" if status < 500 else "InternalServerError")
    error = {"object": "error", "message": refusal.message, "type": kind, "param": refusal.param, "code": status}
    return status, error


def build_native_error(refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error of `/classify`, whose own handler in SGLang has a form of its own.

    That handler reports what is wrong with the texts of a request that was read. Bodies that cannot be read, and
    failures of the server, have the other form on this path as well.
    """
    status, error = build_error(refusal, request_id)
    if status == 400 and refusal.code != "invalid_request":
        return status, {"error": {"message": refusal.sentence}}
    return status, error


WIRE = Wire(
    name="sglang",
    title="SGLang",
    activation="none: the score",
    overload_status=503,
    build_error=build_error,
    path_errors={"/classify": build_native_error},
)
router = make_router(WIRE)


class _Body(WireBody):
    ignored: ClassVar[Mapping[str, object]] = {
        **dict.fromkeys(("rid", "priority", "user"), ANY),
        "lora_path": (),
        "embed_override_token_id": (),
        "embed_overrides": (),
        "return_pooled_hidden_states": (False,),
    }

    model: Annotated[Text, Field(max_length=1024)] | None = None

    def find_blend(self, context: WireContext) -> Blend:
        """Return the blend that the request names; SGLang's `default` is the wire's own default.

        Raises:
            UnknownModel: no signal or blend of that name is served.
        """
        return context.find_blend(None if self.model == _UNNAMED else self.model)


class ScoreBody(_Body):
    """Body of `POST /v1/score`: each item continues the query, which is a rendered prompt.

    The query ends with the generation prompt, and an item is the completion behind it. Without a query, or with
    `item_first`, an item and the query together are a whole rendered conversation.
    """

    ignored: ClassVar[Mapping[str, object]] = {
        **_Body.ignored,
        "apply_softmax": (False,),  # the softmax of one score is always 1
        "temperature": (1.0, 1),
        "label_token_ids": (),
        "return_token_logprobs": (False,),
        "score_extraction_token": (),
        "query_embed_overrides": (),
        "item_embed_overrides": (),
    }

    query: Input | None = None
    items: Input
    item_first: bool = False

    @model_validator(mode="after")
    def _check_query(self) -> "ScoreBody":
        if self.query is not None and len(list_entries(self.query)) > 1:
            raise ValueError("`query` must be one text, or the token ids of one text")
        return self


class EmbeddingsBody(_Body):
    """Body of `POST /v1/embeddings`: rendered conversations in `input`."""

    ignored: ClassVar[Mapping[str, object]] = {**_Body.ignored, "dimensions": ()}

    input: Input
    encoding_format: Encoding | None = None  # null is `float`, as for both servers


class ClassifyBody(_Body):
    """Body of SGLang's own `POST /classify`: rendered conversations in `text`, or their token ids in `input_ids`."""

    ignored: ClassVar[Mapping[str, object]] = {
        **_Body.ignored,
        **dict.fromkeys(("sampling_params", "log_metrics", "routing_key", "background", "modalities"), ANY),
        **dict.fromkeys(("external_trace_header", "received_time"), ANY),
        **dict.fromkeys(("image_data", "video_data", "audio_data", "input_embeds", "lora_id", "dimensions"), ()),
        **dict.fromkeys(("is_cross_encoder_request", "return_prompt_token_ids"), (False,)),
    }

    text: Texts | None = None
    input_ids: IdInput | None = None

    @model_validator(mode="after")
    def _check_form(self) -> "ClassifyBody":
        if (self.text is None) == (self.input_ids is None):
            raise ValueError("set either `text` or `input_ids`")
        return self


@router.post("/v1/score")
async def score(body: ScoreBody, context: Context) -> dict[str, Any]:
    """Score each item behind the query."""
    blend = body.find_blend(context)
    scored = await context.score(_read_items(body, context, blend), blend, name_entries(body.items, "items"))
    return {
        "scores": [[one.score] for one in scored],
        "pooled_hidden_states": None,
        "token_logprobs": None,
        "model": body.model or blend.name,
        "usage": {**build_usage(sum(one.tokens for one in scored)), "reasoning_tokens": 0},
        "object": "scoring",
    }


@router.post("/v1/embeddings")
async def embed(body: EmbeddingsBody, context: Context) -> dict[str, Any]:
    """Score rendered conversations; the score is the only dimension of the embedding."""
    blend = body.find_blend(context)
    items = read_entries(context, blend, body.input, "input")
    scored = await context.score(items, blend, name_entries(body.input, "input"))
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encode_value(one.score, body.encoding_format)}
            for index, one in enumerate(scored)
        ],
        "model": body.model or blend.name,
        "usage": {**build_usage(sum(one.tokens for one in scored)), "reasoning_tokens": 0},
    }


@router.post("/classify")
async def classify(body: ClassifyBody, context: Context) -> dict[str, Any] | list[dict[str, Any]]:
    """Score rendered conversations; one text or one list of ids gives one object, a list gives a list."""
    began = time.perf_counter()
    blend = body.find_blend(context)
    value, field = (body.text, "text") if body.text is not None else (body.input_ids, "input_ids")
    assert value is not None
    names = name_entries(value, field)
    scored = await context.score(read_entries(context, blend, value, field), blend, names)
    # Of the whole request: its items share forward passes, so that none has a time of its own.
    latency_s = time.perf_counter() - began
    rows = [
        {
            "embedding": [one.score],
            "meta_info": {
                "id": f"{context.request_id}-{index}",
                "prompt_tokens": one.tokens,
                "e2e_latency": latency_s,
            },
        }
        for index, one in enumerate(scored)
    ]
    return rows[0] if names == [field] else rows


@router.get("/v1/models")
async def models(context: Context) -> dict[str, Any]:
    """List the served names, as clients of OpenAI's API ask for them."""
    return list_models(context)


def _read_items(body: ScoreBody, context: WireContext, blend: Blend) -> list[ItemSource]:
    """Return the conversation of each item with the query."""
    items: list[Any] = list_entries(body.items)  # all of one type, texts or ids
    check_completions(context.request, len(items), "items")
    # An empty value of the items' own type, so that it can be joined to texts and to ids.
    query: Any = items[0][:0] if body.query is None else list_entries(body.query)[0]
    if type(query) is not type(items[0]):
        raise ServingError(
            "must be text if `query` is, and token ids if `query` is", code="invalid_request", param="items"
        )
    if query and not body.item_first:
        read = read_pairs if isinstance(query, str) else read_id_pairs
        return read(context, blend, [(query, item) for item in items])
    # Without a query, or behind the item, it is not the prompt: the text alone shows where the completion begins.
    return read_entries(context, blend, [item + query for item in items], "items")
