"""Speak NeMo-Gym's wire: `POST /verify` and `POST /compare`, as its resources servers answer them.

Sources: https://github.com/NVIDIA-NeMo/Gym, `nemo_gym/base_resources_server.py`, `nemo_gym/rollout_collection.py` and
`resources_servers/genrm_compare/app.py`; the check of `reward_components` is in NeMo-RL's `environments/nemo_gym.py`.
"""

import itertools
import json
import statistics
from typing import Annotated, Any, ClassVar

from fastapi import Response
from pydantic import Field

from assay_service.api.compat.responses import read_completion, read_conversation
from assay_service.api.compat.rollout_metrics import aggregate_rollouts
from assay_service.api.compat.wire import Context, Wire, WireBody, WireContext, WireScore, make_router
from assay_service.api.refusals import Refusal
from assay_service.api.scoring import check_completions
from assay_service.scoring.blend import LENGTH_TERM, Blend, rank_scores, weigh_logits

# Fields that an answer sets, or that mark a failure. A row that is verified again may hold those of its last answer.
_ANSWERED = ("reward", "reward_components", "_ng_no_persist")
_FAILURE = "_ng_failure"

# NeMo-Gym's clients put this before the path of a server when they record calls (`observability_enabled`).
_PREFIX = "/ng-rollout/{rollout_id}"


def build_error(refusal: Refusal, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error; NeMo-Gym's own servers have only FastAPI's `detail`."""
    return refusal.status, {"detail": refusal.message, "code": refusal.code, "request_id": request_id}


WIRE = Wire(
    name="nemo_gym",
    title="NeMo-Gym",
    activation="none: `reward` holds the score",
    overload_status=503,
    build_error=build_error,
)
router = make_router(WIRE)


class VerifyBody(WireBody):
    """Body of `POST /verify`: a request to the policy, its response, and all columns of the row."""

    ignores_unknown = True

    responses_create_params: dict[str, Any]
    response: dict[str, Any]


class CompareBody(WireBody):
    """Body of `POST /compare`: the responses to one conversation; a principle would ask for other scores."""

    ignored: ClassVar = {"principle": ()}

    conversation_history: list[dict[str, Any]]
    response_objs: Annotated[list[dict[str, Any]], Field(fail_fast=True)]


class SeedBody(WireBody):
    """Body of `POST /seed_session`: the row of a data set."""

    ignores_unknown = True


class AggregateBody(WireBody):
    """Body of `POST /aggregate_metrics`: answers of `/verify`."""

    verify_responses: list[dict[str, Any]]


@router.post("/verify")
@router.post(f"{_PREFIX}/verify", include_in_schema=False)
async def verify(body: VerifyBody, context: Context) -> Response:
    """Score one response, and return the body with its reward.

    A refused item fails the request, or gets the declared floor. Its answer then has NeMo-Gym's `_ng_failure_class`, so
    that NeMo-Gym keeps it apart from rows with a reward.
    """
    blend = context.find_blend()
    item = read_conversation(body.responses_create_params, body.response)
    scored = (await context.score([item], blend, ["response"]))[0]
    # All columns go back, because NeMo-Gym writes the answer as the row of its results.
    row = {
        name: value
        for name, value in body.model_dump().items()
        if name not in _ANSWERED and not name.startswith(_FAILURE)
    }
    row["reward"] = scored.score
    if len(blend.weights) > 1 or blend.length_penalty is not None:
        row["reward_components"] = _split_reward(context, blend, scored)
    if scored.error is not None:
        # Terminal, because another try would be refused as well.
        row |= {f"{_FAILURE}_class": "assay_refused", f"{_FAILURE}_terminal": True}
        row[f"{_FAILURE}_assay_error"] = f"{scored.error.code}: {scored.error.message}"
    # Escaped, because a column may hold half of a surrogate pair, which has no UTF-8 form.
    return Response(json.dumps(row, ensure_ascii=True, allow_nan=False), media_type="application/json")


def _split_reward(context: WireContext, blend: Blend, scored: WireScore) -> dict[str, float]:
    """Return the parts of a score: one for each signal, and the length penalty.

    NeMo-RL takes 0.0 for a part that is missing, so a floor has parts as well.
    """
    if scored.result is None:
        names = [*blend.weights] if blend.length_penalty is None else [*blend.weights, LENGTH_TERM]
        return dict.fromkeys(names, scored.score / len(names))
    return weigh_logits(blend, scored.result.logits, context.registry.moments, scored.result.completion_tokens)


@router.post("/compare")
@router.post(f"{_PREFIX}/compare", include_in_schema=False)
async def compare(body: CompareBody, context: Context) -> dict[str, Any]:
    """Score the responses to one conversation, and compare each with the next best one.

    `comparison_results` has one row for each two neighbors of the ranking, best first: what a GenRM's comparisons of
    pairs would say. Rewards are scores, which have no 1-to-5 scale.
    """
    check_completions(context.request, len(body.response_objs), "response_objs")
    blend = context.find_blend()
    # A refused response is named by its place, because all of them share one conversation.
    params = [f"response_objs[{index}]" for index in range(len(body.response_objs))]
    items = [
        read_completion(body.conversation_history, response, param)
        for response, param in zip(body.response_objs, params, strict=True)
    ]
    scored = await context.score(items, blend, params)
    rewards = [one.score for one in scored]
    order = [place.index for place in rank_scores(dict(enumerate(rewards)))]
    return {
        "rewards": rewards,
        "comparison_results": [
            {
                "response_i": i,
                "response_j": j,
                "judge_idx": 0,
                "score_1": rewards[i],
                "score_2": rewards[j],
                "margin": rewards[i] - rewards[j],
            }
            for i, j in itertools.pairwise(order)
        ],
        "metrics": {
            "mean_individual_score": statistics.fmean(rewards),
            "std_individual_score": statistics.pstdev(rewards),
        }
        if rewards
        else {},
    }


@router.post("/seed_session")
@router.post(f"{_PREFIX}/seed_session", include_in_schema=False)
async def seed_session(_: SeedBody) -> dict[str, Any]:
    """Begin a session. A score depends on nothing but its request, so there is none to keep, and no cookie is set."""
    return {}


@router.post("/aggregate_metrics")
def aggregate_metrics(body: AggregateBody) -> dict[str, Any]:
    """Return the statistics of verified rows, by task and for all of them.

    It has no `async`, so that FastAPI runs it in a thread: the rows of a whole run take seconds.
    """
    return aggregate_rollouts(body.verify_responses)


@router.get("/reverify_mode")
async def get_reverify_mode() -> str:
    """Return that rows can be verified again, because no session decides a score."""
    return "stateless"
