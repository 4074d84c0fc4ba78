"""`AppTransport`: a service in this process instead of the network, for `RewardClient`."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import CancelledError
from contextlib import ExitStack, asynccontextmanager
from typing import Any, TypeAlias

import httpx
from anyio.from_thread import start_blocking_portal

App: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]


class AppTransport(httpx.BaseTransport):
    """Carries requests to an ASGI application that runs in an event loop of its own, in a thread of its own.

    `httpx.ASGITransport` is for `AsyncRewardClient`, and leaves starting the application to its caller. What the
    application raises is raised to the client's caller. Close it, or the client that has it, to stop the application.
    A forked process does not have the application's thread: requests from there raise, and closing there does nothing.

    Args:
        app: as `create_app` makes it; it is started here.

    Raises:
        RuntimeError: the application says that it could not start; what it raises itself comes as it is.
    """

    def __init__(self, app: App) -> None:
        self._made_in = os.getpid()
        self._inner = httpx.ASGITransport(app)
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal(name="assay-app"))
            stack.callback(self._portal.call, self._portal.stop, True)  # requests that outlive the application end
            stack.enter_context(self._portal.wrap_async_context_manager(_running(app)))
            self._stack = stack.pop_all()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The application's answer, whole; the request's read timeout is for all of it.

        Raises:
            RuntimeError: the application runs in the process that this one was forked from.
        """
        if self._made_in != os.getpid():
            raise RuntimeError("the application runs in another process; start one, and its client, in this process")
        request.read()
        try:
            return self._portal.call(self._answer, request)
        except CancelledError:
            raise httpx.ReadError("the application was stopped", request=request) from None

    def close(self) -> None:
        """Stops the application, which may finish what it has begun, and ends the thread."""
        if self._made_in == os.getpid():
            self._stack.close()

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        limit = asyncio.timeout(request.extensions.get("timeout", {}).get("read"))
        try:
            async with limit:
                answer = await self._inner.handle_async_request(request)
                assert isinstance(answer.stream, httpx.AsyncByteStream)
                body = b"".join([part async for part in answer.stream])
        except TimeoutError as error:
            if not limit.expired():  # the application's own
                raise
            raise httpx.ReadTimeout("no answer in time", request=request) from error
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(body))


@asynccontextmanager
async def _running(app: App) -> AsyncIterator[None]:
    """The application between its startup and its shutdown, by ASGI's lifespan protocol."""
    said: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    told: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def live() -> None:
        try:
            await app({"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}, told.get, said.put)
        finally:
            said.put_nowait({"type": "ended"})

    life = asyncio.create_task(live())
    knows = await _tell(told, said, life, "startup")
    yield
    if knows:
        await _tell(told, said, life, "shutdown")
        await life


async def _tell(told: asyncio.Queue[Any], said: asyncio.Queue[Any], life: asyncio.Task[None], phase: str) -> bool:
    """Whether the application has done it; False if it knows no lifespan, which it says by ending without a word."""
    told.put_nowait({"type": f"lifespan.{phase}"})
    answer = await said.get()
    if answer["type"] == f"lifespan.{phase}.failed":
        await life  # most raise again what went wrong
        raise RuntimeError(f"the application's {phase} failed: {answer.get('message', '')}")
    if answer["type"] == "ended":
        life.exception()  # is how an application says so
    return bool(answer["type"] == f"lifespan.{phase}.complete")
