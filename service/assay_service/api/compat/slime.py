"""Speak slime's wire: the request of `--rm-type remote_rm`, whose answer is one number, or an object of several.

Source: https://github.com/THUDM/slime/blob/main/slime/rollout/rm_hub/__init__.py.
"""

from typing import Any

from assay_service.api.compat.rendered import read_completion, read_pairs
from assay_service.api.compat.wire import Context, Wire, WireBody, WireContext, make_router
from assay_service.api.messages import build_completion_items
from assay_service.api.refusals import Refusal
from assay_service.api.schemas import Prompt, RankCompletion, Text
from assay_service.api.sources import ItemSource
from assay_service.compat_settings import SCORE_KEY, SlimeSettings
from assay_service.errors import ContentError
from assay_service.scoring.blend import Blend


def build_error(refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error; slime reads the status only."""
    return refusal.status, {"error": refusal.message, "code": refusal.code, "request_id": request_id}


WIRE = Wire(
    name="slime",
    title="slime",
    activation="none: the body is the score, or has it as `reward`",
    overload_status=503,
    build_error=build_error,
)
router = make_router(WIRE)


class Body(WireBody):
    """Body of `POST /reward`: a prompt in the policy's template, or its messages, and the response to it."""

    ignores_unknown = True

    prompt: Prompt
    response: Text


@router.post("/reward")
async def reward(body: Body, context: Context) -> float | dict[str, float]:
    """Score one response.

    With the setting `parts`, the answer has the score and the logit of each signal, from which slime's `--reward-key`
    takes one. A response with the floor has no logits: a run that takes one of them stops there.
    """
    blend = context.find_blend()
    (scored,) = await context.score([_read(body, context, blend)], blend, ["response"])
    assert isinstance(context.settings, SlimeSettings)
    if not context.settings.parts:
        return scored.score
    logits = {} if scored.result is None else {name: scored.result.logits[name] for name in blend.weights}
    return {**logits, SCORE_KEY: scored.score}


def _read(body: Body, context: WireContext, blend: Blend) -> ItemSource:
    if isinstance(body.prompt, str):
        return read_pairs(context, blend, [(body.prompt, body.response)])[0]
    # The response takes its place only for the checks of the messages; the policy's template may open reasoning.
    (item,) = build_completion_items(body.prompt, [RankCompletion(completion=body.response)], "prompt")
    return item if isinstance(item, ContentError) else read_completion(context, blend, item.prompt, body.response)
