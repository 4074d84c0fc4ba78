"""Connect a command to its service: it must be reached at once, and then may take as long as its work takes."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeVar

T = TypeVar("T")
A_DAY_S = 86_400.0  # for a request: work needs no limit, because `_drive` limits silence
REACH_S = 10.0  # to find out whether anything listens


def run_with_services(
    urls: Sequence[str],
    work: Callable[..., Awaitable[T]],
    *,
    api_key_file: str | None = None,
    chunk_size: int = 64,
    concurrency: int = 8,
) -> T:
    """Run `work` with a client of each service and return its result.

    Args:
        urls: the addresses of the services.
        work: the function that does the command's work with one `AsyncRewardClient` for each address.
        api_key_file: the path of a file with the key that the clients send.
        chunk_size: the most rows of one request.
        concurrency: the most requests in flight at once, for each service.

    Raises:
        ConnectError: nothing listens at one of the addresses; it is raised at once.
        InvalidInput: the file has no key.
    """
    import asyncio  # noqa: PLC0415

    from assay_client import _addresses, client  # noqa: PLC0415

    api_key = _addresses.read_api_key(api_key_file)
    # Before the client with a limit of a day, which would retry a refused connection.
    for url in urls:
        reach(url, api_key)

    # `_drive` gives up a silent service, and a long request may still be answered.
    connect = partial(
        client.AsyncRewardClient,
        api_key=api_key,
        timeout_s=A_DAY_S,
        deadline_s=A_DAY_S,
        chunk_size=chunk_size,
        max_concurrency=concurrency,
    )

    async def run() -> T:
        async with AsyncExitStack() as stack:
            return await work(*[await stack.enter_async_context(connect(url)) for url in urls])

    return asyncio.run(run())


def reach(url: str, api_key: str | None = None) -> None:
    """Check that something listens at an address, by one try, because a person waits; other faults are ignored here.

    Raises:
        ConnectError: nothing listens, or the connection was not accepted in time.
    """
    import httpx  # noqa: PLC0415

    from assay_client import client, errors  # noqa: PLC0415

    with client.RewardClient(url, api_key=api_key, timeout_s=REACH_S, max_retries=0) as service:
        try:
            service.info()
        except errors.AssayError as error:
            if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                advice = "start one with `assay serve`, or give --url or ASSAY_URL"
                raise errors.ConnectError(f"no service at {url} ({advice}): {error.__cause__}") from error
