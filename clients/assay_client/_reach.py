"""A service for one command: reached at once or not at all, and then given the time that its work takes."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from assay_client.bulk import Tally
    from assay_client.client import AsyncRewardClient

A_DAY_S = 86_400.0  # that a request may take: work is not limited, silence is
REACH_S = 10.0  # to find out whether anything listens


def with_service(
    url: str,
    work: "Callable[[AsyncRewardClient], Awaitable[Tally]]",
    chunk_size: int = 64,
    concurrency: int = 8,
) -> "Tally":
    """What `work` returns with a client; fails at once if nothing listens at `url`."""
    import asyncio  # noqa: PLC0415

    from assay_client import client  # noqa: PLC0415

    reach(url)

    async def run() -> "Tally":
        async with client.AsyncRewardClient(
            url, timeout_s=A_DAY_S, deadline_s=A_DAY_S, chunk_size=chunk_size, max_concurrency=concurrency
        ) as service:
            return await work(service)

    return asyncio.run(run())


def reach(url: str) -> None:
    """Check that something listens; whatever else is wrong, the command itself finds out.

    Raises:
        ConnectError: nothing does, or nothing took the connection in time. One try, unlike those of a client: a
            person waits.
    """
    import httpx  # noqa: PLC0415

    from assay_client import client, errors  # noqa: PLC0415

    with client.RewardClient(url, timeout_s=REACH_S, max_retries=0) as service:
        try:
            service.info()
        except errors.AssayError as error:
            if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                advice = "start one with `assay serve`, or give --url or ASSAY_URL"
                raise errors.ConnectError(f"no service at {url} ({advice}): {error.__cause__}") from error
