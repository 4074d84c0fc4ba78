"""Give verifiers and prime-rl reward functions that score over HTTP.

Sources: https://github.com/PrimeIntellect-ai/verifiers, `verifiers/v1/task.py` (0.4.0), which passes `task` and `trace`
by name; and for releases before 0.2, `verifiers/rubrics/rubric.py`, which passes columns by name.
"""

import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from assay_client.client import AsyncRewardClient
from assay_client.errors import InvalidInput
from assay_client.integrations._rows import build_rows, convert_finish_reason
from assay_client.integrations._scorer import AsyncScorer, ScoreOptions, read_rewards
from assay_client.integrations._single import open_async_client, read_parts, require_score
from assay_client.types import FinishReason

logger = logging.getLogger("assay_client.integrations")

MISSING = float("nan")
LIMITS = ("max_input_tokens", "max_output_tokens", "max_total_tokens", "compaction_failed")


def make_reward(
    client: AsyncRewardClient | str,
    *,
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
    parts: bool = False,
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return `async f(trace)` for verifiers' `task.rewards`, whose reward is the score of a signal or blend.

    A completion that cannot be scored raises an error, which verifiers records: the reward stays None.

    Args:
        client: the client, or the address of the service.
        model: the signal or blend to score by; the server's default if neither this nor `weights` is given.
        weights: the weight of each signal by name, instead of a model.
        parts: True returns the logit of each signal by name instead of the score. verifiers records each of them, and
            adds them up.
    """
    scorer = AsyncScorer(open_async_client(client), ScoreOptions(model, weights))

    async def assay(trace: Any) -> float | dict[str, float]:
        """Return the score of the agent's completion; see `find_branch`."""
        branch = find_branch(trace)
        turns = [_build_message(message) for message in branch.messages]
        result = await scorer.score(build_rows([turns[:-1]], [turns[-1:]], [_read_finish_reason(trace, branch)]))
        score = require_score(result.data[0])
        return read_parts(score) if parts else score.score

    return assay


def make_rubric_function(
    client: AsyncRewardClient | str, *, model: str | None = None, weights: Mapping[str, float] | None = None
) -> Callable[..., Coroutine[Any, Any, list[float]]]:
    """Return `async f(prompts, completions, states)` for the `Rubric` of verifiers before 0.2.

    It is a group function, so that a group of completions is one request. Those releases make a 0 of every error of a
    reward function. So failures are NaN: also those of a whole request.

    Args:
        client: the client, or the address of the service.
        model: the signal or blend to score by; the server's default if neither this nor `weights` is given.
        weights: the weight of each signal by name, instead of a model.
    """
    scorer = AsyncScorer(open_async_client(client), ScoreOptions(model, weights))

    async def assay(
        prompts: Sequence[Any], completions: Sequence[Any], states: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        """Return the score of each completion, NaN for one that has none."""
        reasons: list[FinishReason] = ["length" if state.get("is_truncated") else "stop" for state in states]
        try:
            result = await scorer.score(build_rows(prompts, completions, reasons))
        except Exception:
            logger.exception("%d completions have no reward", len(completions))
            return [MISSING] * len(completions)
        return [MISSING if reward is None else reward for reward in read_rewards(result)]

    return assay


def find_branch(trace: Any) -> Any:
    """Return the branch of a trace that ends with the agent's completion: the final one, if there are no subagents.

    Raises:
        InvalidInput: the trace has no messages, or no branch ends with the completion.
    """
    branches = trace.branches
    reply = getattr(trace, "root_reply", None)  # only with subagents, whose branches may be later than the agent's own
    for branch in reversed(branches):
        if reply is None or str(branch.messages[-1].content).strip() == reply.strip():
            return branch
    missing = "has no messages" if not branches else "has no branch that ends with `root_reply`"
    raise InvalidInput(f"the trace {missing}, so there is no completion")


def _build_message(message: Any) -> dict[str, Any]:
    """Return a message in the form of chat completions; verifiers writes calls of functions without nesting."""
    turn: dict[str, Any] = message.model_dump(mode="json", exclude_none=True)
    # Opaque items of a provider, which repeat the turn in a form of their own.
    turn.pop("provider_state", None)
    if "tool_calls" in turn:
        turn["tool_calls"] = [_build_call(call) for call in turn["tool_calls"]]
    return {"content": None, **turn}


def _build_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {name: call[name] for name in ("name", "arguments", "namespace") if name in call}
    return {"id": call["id"], "type": call["type"], "function": function}


def _read_finish_reason(trace: Any, branch: Any) -> FinishReason | None:
    last = next((call for call in reversed(branch.calls) if call.error is None), None)
    # A limit of turns stops a conversation between messages, so that the last one is complete.
    if trace.stop_condition in LIMITS:
        return "length"
    return "stop" if last is None or last.finish_reason is None else convert_finish_reason(last.finish_reason)
