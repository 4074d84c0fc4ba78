"""Speak the wire of chat completions as reward models use it: `POST /v1/chat/completions` on a finished conversation.

Source: https://docs.nvidia.com/nim/large-language-models/latest/reward-model.html. CAMEL and NeMo Curator read the same
scores from `logprobs`: https://github.com/camel-ai/camel/blob/master/camel/models/reward/nemotron_model.py.
"""

import time
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from assay_service.api.compat.openai_shapes import list_models
from assay_service.api.compat.wire import ANY, Context, Wire, WireBody, WireScore, make_router
from assay_service.api.messages import build_items
from assay_service.api.refusals import Refusal
from assay_service.api.schemas import ChatMessage, ScoreItem, Text
from assay_service.compat_settings import ChatSettings
from assay_service.scoring.blend import Blend


def build_error(refusal: Refusal, _: str) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error; OpenAI answers 400 where Assay answers 422."""
    status = 400 if refusal.status == 422 else refusal.status
    kind = "server_error" if status >= 500 else "invalid_request_error"
    # Settings may give it a status of 5xx, and OpenAI's type for it stays the same.
    if refusal.code == "overloaded":
        kind = "rate_limit_error"
    return status, {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}


WIRE = Wire(
    name="chat",
    title="Chat completions",
    activation="none: `content` holds the score",
    overload_status=429,
    build_error=build_error,
)
router = make_router(WIRE)


class Body(WireBody):
    """Body of `POST /v1/chat/completions`."""

    # Nothing is generated, so options of sampling, storage and billing change no score.
    ignored: ClassVar[Mapping[str, object]] = {
        **dict.fromkeys(
            (
                *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens", "max_completion_tokens"),
                *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "reasoning_effort"),
                *("logprobs", "top_logprobs", "user", "safety_identifier", "metadata", "store", "service_tier"),
                *("prompt_cache_key", "prompt_cache_retention", "verbosity", "parallel_tool_calls"),
            ),
            ANY,
        ),
        "n": (1,),
        "modalities": (["text"],),
        "response_format": ({"type": "text"},),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "add_generation_prompt": (False,),
        "continue_final_message": (False,),
        "chat_template": (),
        "chat_template_kwargs": ({},),
    }

    model: Annotated[Text, Field(max_length=1024)] | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    stream: bool | None = None

    @field_validator("stream")
    @classmethod
    def _check_stream(cls, stream: bool | None) -> bool | None:
        if stream:
            raise ValueError("must be false: an answer has one score, and no text that could be streamed")
        return stream

    @field_validator("messages")
    @classmethod
    def _check_last(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        if messages[-1].role != "assistant":
            raise ValueError("the last message must have the role `assistant`: it is scored, and nothing is generated")
        return messages


@router.post("/v1/chat/completions")
async def complete(body: Body, context: Context) -> dict[str, Any]:
    """Score the last message of a conversation.

    `logprobs` holds each pair of name and score once more, because some clients read it there; no value is a
    log-probability.
    """
    blend = context.find_blend(body.model)
    items = build_items([ScoreItem.model_construct(messages=body.messages)])
    (scored,) = await context.score(items, blend, ["messages"])
    pairs = _list_pairs(blend, scored)
    # Only this wire has a format for its content, so its settings are a class of their own.
    assert isinstance(context.settings, ChatSettings)
    return {
        "id": f"chatcmpl-{context.request_id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model or blend.name,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": context.settings.format_content(scored.score, pairs)},
                "logprobs": {
                    "content": [
                        {"token": name, "logprob": value, "bytes": None, "top_logprobs": []}
                        for name, value in pairs.items()
                    ]
                },
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": scored.tokens, "completion_tokens": 0, "total_tokens": scored.tokens},
    }


@router.get("/v1/models")
async def models(context: Context) -> dict[str, Any]:
    """List the served names, as clients of OpenAI's API ask for them."""
    return list_models(context)


def _list_pairs(blend: Blend, scored: WireScore) -> dict[str, float]:
    """Return the blend's score by its name, and the logits of its signals; one signal alone has one pair."""
    logits = {} if scored.result is None else scored.result.logits
    return {blend.name: scored.score, **logits}
