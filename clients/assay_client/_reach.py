"""Connect a command to its service: it must be reached at once, and then may take as long as its work takes."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
A_DAY_S = 86_400.0  # for a request: work needs no limit, because `_drive` limits silence
REACH_S = 10.0  # to find out whether anything listens


def run_with_services(
    urls: Sequence[str],
    work: Callable[..., Awaitable[T]],
    *,
    api_key: str | None = None,
    chunk_size: int = 64,
    concurrency: int = 8,
) -> T:
    """Run `work` with a client of each service and return its result.

    Args:
        urls: the addresses of the services.
        work: the function that does the command's work with one `AsyncRewardClient` for each address.
        api_key: the key that the clients send.
        chunk_size: the most rows of one request.
        concurrency: the most requests in flight at once, for each service.

    Raises:
        ConnectError: nothing listens at one of the addresses; it is raised at once.
    """
    import asyncio  # noqa: PLC0415

    from assay_client import client  # noqa: PLC0415

    # Before the client with a limit of a day, which would retry a refused connection.
    for url in urls:
        reach(url, api_key)

    async def run() -> T:
        async with AsyncExitStack() as stack:
            services = [
                await stack.enter_async_context(
                    client.AsyncRewardClient(
                        url,
                        api_key=api_key,
                        timeout_s=A_DAY_S,
                        deadline_s=A_DAY_S,
                        chunk_size=chunk_size,
                        max_concurrency=concurrency,
                    )
                )
                for url in urls
            ]
            return await work(*services)

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


def read_api_key(path: str | None) -> str | None:
    """Return the API key in a file, without the line break at its end; None if no file is named.

    Raises:
        OSError: the file cannot be read.
        InvalidInput: the file is not text, or has no key.
    """
    from assay_client import errors  # noqa: PLC0415

    if path is None:
        return None
    try:
        key = Path(path).read_text(encoding="ascii").strip()
    except UnicodeDecodeError:  # its text would repeat a part of the file
        key = ""
    if not key:
        raise errors.InvalidInput(f"--api-key-file: {path} must have one line of ASCII characters, the key")
    return key
