"""Score text that a trainer's chat template has rendered already, which the service reads back into messages.

The service does it behind `POST /compat/openrlhf/get_reward`, whose settings name the policy's tokenizer and template,
and the model to score by.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from assay_client._protocol import Call
from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.errors import InvalidAnswer
from assay_client.integrations._rows import split_end_token
from assay_client.types import FinishReason

PATH = "/compat/openrlhf/get_reward"


@dataclass(frozen=True)
class RenderedScores:
    """The scores of rendered conversations, and the logit of each signal; all in the order of the request.

    Attributes:
        rewards: the scores.
        logits: the logits by signal; empty if the service gave a floor in place of one score.
        probabilities: the probabilities, for one absolute signal; None otherwise.
    """

    rewards: list[float]
    logits: dict[str, list[float]]
    probabilities: list[float] | None


def require_parts(scores: RenderedScores) -> dict[str, list[float]]:
    """Return the logits of each signal.

    Raises:
        InvalidAnswer: a floor took the place of a score, and a floor has no logits.
    """
    if not scores.logits:
        raise InvalidAnswer(
            "the service gave a refused completion its floor, which has no parts; ask for one reward, or remove "
            "`on_item_error` from the settings of its wire"
        )
    return scores.logits


def append_end(completion: str, finish_reason: FinishReason, end_tokens: tuple[str, ...]) -> str:
    """Return a completion as its template prints it: with the end token if it ended, and without it if it did not.

    Args:
        completion: the completion, with or without one of the end tokens.
        finish_reason: "stop" if it ended.
        end_tokens: the end tokens of the policy, that of the template first. It takes the place of another one, which
            the template would print as a part of the text.
    """
    text, _ = split_end_token(completion, end_tokens)
    return text + end_tokens[0] if finish_reason == "stop" else text


def score_rendered(client: RewardClient, queries: Sequence[str], prompts: Sequence[str]) -> RenderedScores:
    """Return the scores of rendered conversations.

    Args:
        client: the client.
        queries: prompts with their completions, as the policy's template renders them.
        prompts: the prompts alone; each query begins with its prompt.

    Raises:
        AssayError: the request failed; the service refuses all of it if one text cannot be read or scored.
    """
    return client._run_all([_build_call(queries, prompts)])[0].value


async def score_rendered_async(
    client: AsyncRewardClient, queries: Sequence[str], prompts: Sequence[str]
) -> RenderedScores:
    """Return the scores of rendered conversations; see `score_rendered`."""
    return (await client._run_all([_build_call(queries, prompts)]))[0].value


def _build_call(queries: Sequence[str], prompts: Sequence[str]) -> Call[RenderedScores]:
    return Call(PATH, {"query": [*queries], "prompts": [*prompts]}, partial(_parse, count=len(queries)))


def _parse(body: bytes, count: int) -> RenderedScores:
    try:
        answer = json.loads(body)
        logs = answer["extra_logs"]
        scores = RenderedScores(answer["rewards"], dict(logs), answer.get("scores"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InvalidAnswer("the answer has no `rewards` and `extra_logs`") from None
    columns = [
        scores.rewards,
        *scores.logits.values(),
        *([] if scores.probabilities is None else [scores.probabilities]),
    ]
    for column in columns:
        if not isinstance(column, list) or len(column) != count or not all(map(_is_finite, column)):
            raise InvalidAnswer(f"the answer does not have {count} finite numbers in each of its lists")
    return scores


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
