"""Around every request: its id, the cap on its body, its count and time. Pure ASGI: holds for chunked bodies too."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assay_service.errors import ClientGone
from assay_service.logs import ACCESS, Limited
from assay_service.metrics import Metrics
from assay_service.request_id import HEADER, request_id

T = TypeVar("T")


# What people who run the service should hear of, and what to do about it.
_WARNINGS = {
    429: "requests are refused, because the queue is full: fewer at once, more replicas, or a larger max_queue_tokens",
    499: "clients close their connections before the answer: longer timeouts or smaller requests on their side",
    500: "requests fail",
    503: "requests are refused, because the service is not ready",
}

_access = logging.getLogger(ACCESS)


class BodyTooLarge(HTTPException):
    """The body has more bytes than the service takes."""

    def __init__(self) -> None:
        super().__init__(413)


class Guard:
    """Gives every request an id, echoes it, stops reading a body that is too large, measures, and logs.

    Args:
        app: the application behind it.
        max_body_bytes: of a request.
        metrics: is told of every request, by route template, so that unknown paths do not make new labels.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, metrics: Metrics) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics
        self._limited = Limited()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answered = request_id(_sent_id(scope))
        scope.setdefault("state", {})["request_id"] = answered
        started_s = time.monotonic()
        received = 0
        status = 500  # of an exception that nothing handled

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise BodyTooLarge
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = answered
            await send(message)

        try:
            await self._app(scope, counted_receive, send_with_id)
        finally:
            self._record(scope, status, time.monotonic() - started_s)

    def _record(self, scope: Scope, status: int, duration_s: float) -> None:
        """Count and log a request; of its content only how many items it asked for."""
        route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.request_s.labels(route).observe(duration_s)
        fields: dict[str, object] = {"method": scope["method"], "route": route, "status": status}
        fields |= {"ms": round(duration_s * 1000, 1), "request_id": scope["state"]["request_id"]}
        if "items" in scope["state"]:
            fields["items"] = scope["state"]["items"]
        _access.info("request", extra={"fields": fields})
        if status in _WARNINGS:
            self._limited.warning(str(status), _WARNINGS[status], **fields)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away; Starlette itself would let it run.

    Call it once the body has been read: from then on, all that can still arrive is the disconnect.

    Raises:
        ClientGone: the client went away first.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("the client closed its connection")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _sent_id(scope: Scope) -> str | None:
    """Return the value of the header with the request's id; None where there is none or it is not text."""
    for name, value in scope["headers"]:
        if name == HEADER.encode() and value.isascii():
            return str(value.decode())
    return None
