"""Score one row for trainers that ask about one completion at a time, and have no value for a missing reward."""

from collections.abc import Collection, Mapping

from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.errors import InvalidInput
from assay_client.integrations._rows import build_rows
from assay_client.integrations._scorer import AsyncScorer, Scorer
from assay_client.types import FinishReason, Score, ScoreFailure


def open_client(client: RewardClient | str) -> RewardClient:
    """Return a client; an address becomes a client with default settings."""
    return RewardClient(client) if isinstance(client, str) else client


def open_async_client(client: AsyncRewardClient | str) -> AsyncRewardClient:
    """Return a client for asyncio; an address becomes a client with default settings."""
    return AsyncRewardClient(client) if isinstance(client, str) else client


def require_score(row: Score | ScoreFailure) -> Score:
    """Return a row that was scored.

    Raises:
        ItemFailed: the row has no score. The trainer has no value for that, so that its call must fail.
    """
    if isinstance(row, ScoreFailure):
        raise row.to_exception()
    return row


def read_parts(score: Score) -> dict[str, float]:
    """Return the logit of each signal by name; the names are the same for all rows of a model."""
    return {name: value.logit for name, value in sorted(score.signals.items())}


def score_single(
    scorer: Scorer, prompt: object, completion: object, finish_reason: FinishReason | None = None
) -> Score:
    """Return the score of one completion.

    Args:
        scorer: the scorer, whose client sends the request.
        prompt: text or messages.
        completion: text, or messages that end with the assistant's.
        finish_reason: "stop" or "length"; None where the trainer does not say.

    Raises:
        ItemFailed: the completion cannot be scored.
        AssayError: the request failed.
    """
    return require_score(scorer.score(build_rows([prompt], [completion], [finish_reason])).data[0])


async def score_single_async(
    scorer: AsyncScorer, prompt: object, completion: object, finish_reason: FinishReason | None = None
) -> Score:
    """Return the score of one completion; see `score_single`."""
    return require_score((await scorer.score(build_rows([prompt], [completion], [finish_reason]))).data[0])


def read_end_tokens(end_token: str | Collection[str]) -> tuple[str, ...]:
    """Return the texts of the end tokens; the first one is that of the policy's template.

    Raises:
        InvalidInput: there is none, or one is empty.
    """
    tokens = (end_token,) if isinstance(end_token, str) else tuple(end_token)
    if not tokens or not all(tokens):
        raise InvalidInput("`end_token` must be the text of the policy's end token, or a list of such texts")
    return tokens


def split_end_token(text: str, end_tokens: tuple[str, ...]) -> tuple[str, FinishReason]:
    """Return a completion without its end token, and "stop"; or unchanged, and "length", if it has none."""
    for token in end_tokens:
        if text.endswith(token):
            return text[: -len(token)], "stop"
    return text, "length"


def read_option(config: Mapping[str, object], name: str) -> str:
    """Return a text of a trainer's configuration.

    Raises:
        InvalidInput: it is missing, or is not text.
    """
    value = config.get(name)
    if not isinstance(value, str):
        raise InvalidInput(f"the configuration needs `{name}`, which must be text")
    return value
