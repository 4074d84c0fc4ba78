"""Connect a command to its service: it must be reached at once, and then may take as long as its work takes."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from assay_client.bulk import Tally
    from assay_client.client import AsyncRewardClient

A_DAY_S = 86_400.0  # for a request: work needs no limit, because `_drive` limits silence
REACH_S = 10.0  # to find out whether anything listens


def run_with_service(
    url: str,
    work: "Callable[[AsyncRewardClient], Awaitable[Tally]]",
    chunk_size: int = 64,
    concurrency: int = 8,
) -> "Tally":
    """Run `work` with a client of the service and return its result.

    Args:
        url: the address of the service.
        work: the function that does the command's work with a client.
        chunk_size: the most rows of one request.
        concurrency: the most requests in flight at once.

    Raises:
        ConnectError: nothing listens at `url`; it is raised at once.
    """
    import asyncio  # noqa: PLC0415

    from assay_client import client  # noqa: PLC0415

    # Before the client with a limit of a day, which would retry a refused connection.
    reach(url)

    async def run() -> "Tally":
        async with client.AsyncRewardClient(
            url, timeout_s=A_DAY_S, deadline_s=A_DAY_S, chunk_size=chunk_size, max_concurrency=concurrency
        ) as service:
            return await work(service)

    return asyncio.run(run())


def reach(url: str) -> None:
    """Check that something listens at an address, by one try, because a person waits; other faults are ignored here.

    Raises:
        ConnectError: nothing listens, or the connection was not accepted in time.
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
