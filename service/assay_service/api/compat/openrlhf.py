"""Speak OpenRLHF's wire: `POST /get_reward`, as its remote reward models answer it.

Source: OpenRLHF's client, https://github.com/OpenRLHF/OpenRLHF/blob/main/openrlhf/utils/agent.py.
"""

from typing import Annotated, Any

from pydantic import Field

from assay_service.api.compat.rendered import read_pairs, read_texts
from assay_service.api.compat.wire import Context, Wire, WireBody, make_router
from assay_service.api.refusals import Refusal
from assay_service.api.schemas import Text
from assay_service.api.scoring import check_count
from assay_service.compat_settings import Floor
from assay_service.errors import ContentError, ServingError
from assay_service.scoring.blend import compute_probability


def build_error(refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error; OpenRLHF's own server has only FastAPI's `detail`."""
    return refusal.status, {"detail": refusal.message, "code": refusal.code, "request_id": request_id}


WIRE = Wire(
    name="openrlhf",
    title="OpenRLHF",
    activation="none: `rewards` holds the score",
    overload_status=503,
    build_error=build_error,
)
router = make_router(WIRE)


class Body(WireBody):
    """Body of `POST /get_reward`; `prompts` separates prompt and completion in each text of `query`."""

    ignores_unknown = True

    query: Annotated[list[Text], Field(fail_fast=True)]
    prompts: Annotated[list[Text], Field(fail_fast=True)] | None = None


@router.post("/get_reward")
async def get_reward(body: Body, context: Context) -> dict[str, Any]:
    """Score rendered conversations.

    `scores` is part of the answer only for one absolute signal, whose probability it holds; the client takes `rewards`
    in its place otherwise. The values of `extra_logs` are the logits of all signals, one list for each.
    """
    check_count(context.request, len(body.query), "query")
    blend = context.find_blend()
    # With `prompts` the boundary is known; without, the template must show it.
    pairs = _split(body)
    items = read_texts(context, blend, body.query) if pairs is None else read_pairs(context, blend, pairs)
    scored = await context.score(items, blend, [f"query[{index}]" for index in range(len(items))])
    answer: dict[str, Any] = {"rewards": [one.score for one in scored], "extra_logs": {}}
    # A floored item has no logits, OpenRLHF ends a run at a null, and all its samples must have the same logs.
    if scored and not isinstance(context.settings.on_item_error, Floor):
        answer["extra_logs"] = {
            name: [one.result.logits[name] for one in scored if one.result is not None] for name in blend.weights
        }
    if context.is_absolute(blend):
        answer["scores"] = [compute_probability(one.score) for one in scored]
    return answer


def _split(body: Body) -> list[tuple[str, str] | ContentError] | None:
    """Return the prompt and the completion of each query; None for a request without prompts or queries."""
    # With several URLs, OpenRLHF sends the later ones an empty query beside all prompts.
    if body.prompts is None or not body.query:
        return None
    if len(body.prompts) != len(body.query):
        raise ServingError(
            f"has {len(body.prompts)} prompts for {len(body.query)} queries", code="invalid_request", param="prompts"
        )
    return [_split_query(query, prompt) for query, prompt in zip(body.query, body.prompts, strict=True)]


def _split_query(query: str, prompt: str) -> tuple[str, str] | ContentError:
    """Return the prompt and the completion of a query, whose prompt was encoded and decoded once more."""
    if query.startswith(prompt):
        return prompt, query[len(prompt) :]
    # Decoding may add or remove spaces.
    places = [place for place, character in enumerate(query) if not character.isspace()]
    packed = "".join(prompt.split())
    if packed and "".join(query.split()).startswith(packed):
        end = places[len(packed) - 1] + 1
        end += len(query[end:]) - len(query[end:].lstrip()) if prompt[-1].isspace() else 0
        return query[:end], query[end:]
    return ContentError(
        "the query does not begin with its prompt; OpenRLHF cuts prompts that are too long from the left, so filter or "
        "shorten them, and send both as the policy's template renders them",
        code="unreadable_text",
    )
