"""Speak LLaMA-Factory's wire: `POST /v1/score/evaluation`, as its API server and its PPO client have it.

Source: https://github.com/hiyouga/LLaMA-Factory/blob/main/src/llamafactory/train/ppo/ppo_utils.py.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from assay_service.api.compat.rendered import read_texts
from assay_service.api.compat.wire import Context, Wire, WireBody, make_router
from assay_service.api.refusals import Refusal
from assay_service.api.schemas import Text
from assay_service.api.scoring import check_count
from assay_service.errors import ServingError

_BAD_REQUEST = 400  # LLaMA-Factory's own server answers an empty list and a wrong body by it

_ANY_MODEL = "model"  # the client's fixed value of `model`


def build_error(refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error.

    The client reads `scores` of any body, whatever the status, so an error never has this key.
    """
    status = _BAD_REQUEST if refusal.code == "invalid_request" else refusal.status
    return status, {"detail": refusal.message, "code": refusal.code, "request_id": request_id}


WIRE = Wire(
    name="llamafactory",
    title="LLaMA-Factory",
    activation="none: `scores` holds the score",
    overload_status=503,
    build_error=build_error,
)
router = make_router(WIRE)


class Body(WireBody):
    """Body of `POST /v1/score/evaluation`; `messages` are rendered conversations, one text each.

    The client always sends "model" as `model`, which is then the model of the wire's settings.
    """

    ignored: ClassVar[Mapping[str, object]] = {"max_length": ()}  # another length than the signal's would cut texts

    model: Text
    messages: Annotated[list[Text], Field(fail_fast=True)]


@router.post("/v1/score/evaluation")
async def score_evaluation(body: Body, context: Context) -> dict[str, Any]:
    """Score rendered conversations, in the order in which they were sent.

    Raises:
        AssayError: `messages` is empty, or a conversation cannot be read or scored.
    """
    if not body.messages:
        raise ServingError("is empty; send at least one conversation", code="invalid_request", param="messages")
    check_count(context.request, len(body.messages), "messages")
    blend = context.find_blend(None if body.model == _ANY_MODEL else body.model)
    items = read_texts(context, blend, body.messages)
    scored = await context.score(items, blend, [f"messages[{index}]" for index in range(len(items))])
    return {
        "id": f"scoreval-{context.request_id}",
        "object": "score.evaluation",
        "model": blend.name,
        "scores": [one.score for one in scored],
    }
