"""Run a service in this process instead of over the network: `AppTransport`, for `RewardClient`."""

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
    """A transport to an ASGI application that runs in an event loop and a thread of its own.

    `httpx.ASGITransport` is for `AsyncRewardClient`, and leaves starting the application to its caller. Exceptions of
    the application reach the client's caller. Close the transport, or its client, to stop the application. A forked
    process does not have the application's thread: requests from there raise, and closing there does nothing.

    Args:
        app: an ASGI application, as `create_app` returns it; it is started here.

    Raises:
        RuntimeError: the application reports that it could not start. Exceptions that it raises pass unchanged.
    """

    def __init__(self, app: App) -> None:
        self._made_in = os.getpid()
        self._inner = httpx.ASGITransport(app)
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal(name="assay-app"))
            stack.callback(self._portal.call, self._portal.stop, True)  # requests that outlive the application end
            stack.enter_context(self._portal.wrap_async_context_manager(_run_lifespan(app)))
            self._stack = stack.pop_all()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the application's complete answer; the request's read timeout covers all of it.

        Raises:
            RuntimeError: the application runs in the process that this process was forked from.
            httpx.ReadTimeout: the answer was not complete in time.
            httpx.ReadError: the application was stopped meanwhile.
        """
        if self._made_in != os.getpid():
            raise RuntimeError("the application runs in another process; start one, and its client, in this process")
        request.read()  # a body in parts can be read in this thread, but not in the application's loop
        try:
            return self._portal.call(self._answer, request)
        except CancelledError:
            raise httpx.ReadError("the application was stopped", request=request) from None

    def close(self) -> None:
        """Stop the application, which may finish the requests that it has begun, and end the thread."""
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
            if not limit.expired():  # a TimeoutError of the application itself
                raise
            raise httpx.ReadTimeout("the application did not answer in time", request=request) from error
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(body))


@asynccontextmanager
async def _run_lifespan(app: App) -> AsyncIterator[None]:
    """Keep the application between its startup and its shutdown, by ASGI's lifespan protocol."""
    from_app: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    to_app: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def live() -> None:
        try:
            await app({"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}, to_app.get, from_app.put)
        finally:
            from_app.put_nowait({"type": "ended"})  # not a type of ASGI, so that it cannot be mistaken for one

    life = asyncio.create_task(live())
    has_lifespan = await _send_phase(to_app, from_app, life, "startup")
    yield
    if has_lifespan:
        await _send_phase(to_app, from_app, life, "shutdown")
        await life


async def _send_phase(
    to_app: asyncio.Queue[Any], from_app: asyncio.Queue[Any], life: asyncio.Task[None], phase: str
) -> bool:
    """Send a phase and return whether it is complete; False if the application ends, so that it has no lifespan.

    Raises:
        RuntimeError: the application reports that the phase failed.
    """
    to_app.put_nowait({"type": f"lifespan.{phase}"})
    answer = await from_app.get()
    if answer["type"] == f"lifespan.{phase}.failed":
        await life  # most applications raise the cause again
        raise RuntimeError(f"the application's {phase} failed: {answer.get('message', '')}")
    if answer["type"] == "ended":
        life.exception()  # read, so that asyncio does not report it as never retrieved
    return bool(answer["type"] == f"lifespan.{phase}.complete")
