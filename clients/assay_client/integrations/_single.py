"""Score one row for trainers that ask about one completion at a time, and have no value for a missing reward."""

from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.integrations._rows import Rows
from assay_client.integrations._scorer import AsyncScorer, Scorer
from assay_client.types import Score, ScoreFailure


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


def score_single(scorer: Scorer, rows: Rows) -> Score:
    """Return the score of one row, which `build_rows` or `build_token_rows` has made.

    Raises:
        ItemFailed: the completion cannot be scored.
        AssayError: the request failed.
    """
    return require_score(scorer.score(rows).data[0])


async def score_single_async(scorer: AsyncScorer, rows: Rows) -> Score:
    """Return the score of one row; see `score_single`."""
    return require_score((await scorer.score(rows)).data[0])
