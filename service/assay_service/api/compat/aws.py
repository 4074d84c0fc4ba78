"""Speak the wire of reward functions for Amazon Nova: the list that its trainer gives a Lambda function, by HTTP.

Source: https://docs.aws.amazon.com/bedrock/latest/userguide/reward-functions.html.
"""

from typing import Annotated, Any

from fastapi import Body
from pydantic import AfterValidator, Field

from assay_service.api.compat.wire import Context, Wire, WireBody, WireScore, make_router
from assay_service.api.messages import build_items
from assay_service.api.refusals import Refusal
from assay_service.api.schemas import ChatMessage, ScoreItem, Text
from assay_service.api.scoring import check_count
from assay_service.scoring.item import FinishReason


def build_error(refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error, as Lambda's own runtime prints the failure of a function."""
    return refusal.status, {"errorMessage": refusal.sentence, "errorType": refusal.code, "requestId": request_id}


WIRE = Wire(
    name="aws",
    title="Amazon Nova",
    activation="none: `aggregate_reward_score` holds the score",
    overload_status=429,
    build_error=build_error,
)
router = make_router(WIRE)


def _check_last(messages: list[ChatMessage]) -> list[ChatMessage]:
    if messages[-1].role != "assistant":
        raise ValueError("the last message must have the role `assistant`")
    return messages


class Sample(WireBody):
    """One sample; the trainer copies all columns of the data set into it.

    `finish_reason` and `tools` mean what they mean natively. Other columns are ignored, as `metadata` is.
    """

    ignores_unknown = True

    id: Text
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True), AfterValidator(_check_last)]
    finish_reason: FinishReason = "stop"
    tools: list[Any] | None = None


def _check_ids(samples: list[Sample]) -> list[Sample]:
    # The trainer matches by `id`, so one of two equal ones would get the other's reward.
    if len({sample.id for sample in samples}) < len(samples):
        raise ValueError("two samples have the same `id`, by which the trainer finds their rewards")
    return samples


Samples = Annotated[list[Sample], Field(min_length=1, fail_fast=True), AfterValidator(_check_ids), Body()]


@router.post("/reward")
async def reward(samples: Samples, context: Context) -> list[dict[str, Any]]:
    """Score samples; `metrics_list` holds the logits of all signals of the blend."""
    blend = context.find_blend()
    check_count(context.request, len(samples), "samples")
    items = build_items([_copy_sample(sample) for sample in samples])
    scored = await context.score(items, blend, [f"samples[{index}]" for index in range(len(items))])
    return [
        {"id": sample.id, "aggregate_reward_score": one.score, "metrics_list": _list_metrics(one)}
        for sample, one in zip(samples, scored, strict=True)
    ]


def _copy_sample(sample: Sample) -> ScoreItem:
    return ScoreItem.model_construct(messages=sample.messages, finish_reason=sample.finish_reason, tools=sample.tools)


def _list_metrics(scored: WireScore) -> list[dict[str, Any]]:
    if scored.result is None:  # a floored sample has no logits, and the trainer knows no null
        return []
    return [{"name": name, "value": logit, "type": "Reward"} for name, logit in scored.result.logits.items()]
