"""Surround every request: assign its id, limit its body, count and time it, log it, and refuse it during a drain.

The guard is plain ASGI middleware, so the limit holds for chunked bodies too, which declare no length.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assay_service.api.drain import Drain
from assay_service.errors import ClientGone, NotReady
from assay_service.logs import ACCESS, REQUEST_ID, LimitedWarnings
from assay_service.request_id import HEADER, choose_request_id
from assay_service.telemetry.metrics import Metrics
from assay_service.telemetry.timings import Timings
from assay_service.telemetry.tracing import Tracer

T = TypeVar("T")
Answer = Callable[[Request, Exception], Awaitable[Response]]

# Of W3C's Server Timing, which browsers, curl and load tests show: milliseconds by phase.
TIMING_HEADER = "server-timing"

# Orchestrators and Prometheus ask these all the time, so a line for each success would hide all other lines. They are
# answered while the service drains, and do not delay its end.
_PROBES = frozenset({"/health", "/ready", "/metrics"})
_TRACE_HEADERS = frozenset({b"traceparent", b"tracestate"})
# Statuses that the log warns of, and what an operator can do about them.
_WARNINGS = {
    401: "requests without a valid API key are refused: give clients a key of the key file",
    403: "requests are refused, because their key lacks the scope: `assay keys list` shows the scopes",
    429: (
        "requests are refused, because the queue is full: send fewer at once, add replicas, or raise "
        "limits.max_queue_wait_s if clients wait longer"
    ),
    499: "clients close their connections before the answer: give them longer timeouts, or send smaller requests",
    500: "requests fail; earlier lines of this log may say why",
    503: "requests are refused, because the service is not ready",
    504: "requests are not finished within the time of their clients: send smaller ones, or give them more time",
}

_access = logging.getLogger(ACCESS)


class BodyTooLarge(HTTPException):
    """The body has more bytes than `limits.max_body_bytes`.

    It is an HTTPException, because FastAPI turns every other error while it reads a body into a 400.
    """

    def __init__(self) -> None:
        super().__init__(413)


class Guard:
    """Middleware that gives every request an id and echoes it, limits the body, measures, and logs.

    Args:
        app: the application behind the guard.
        max_body_bytes: most bytes of a request's body; reading stops beyond them.
        drain: the requests in flight, and whether new ones are taken.
        answer: function that answers a refused request.
        metrics: the counters of requests, labelled by route template, so that unknown paths do not make new labels.
        tracer: sender of the spans of requests; None sends none.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        metrics: Metrics,
        tracer: Tracer | None,
        drain: Drain,
        answer: Answer,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics
        self._tracer = tracer
        self._drain = drain
        self._answer = answer
        self._warnings = LimitedWarnings()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with its id and `Timings` in `scope["state"]` and in the answer's headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = choose_request_id(_read_sent_id(scope))
        scope.setdefault("state", {})["request_id"] = request_id  # `request.state` of the handlers
        timings = scope["state"]["timings"] = Timings(time.monotonic())
        entered = REQUEST_ID.set(request_id)
        received, gone = 0, False
        answered = False
        status = 500  # stays where no answer starts, because nothing handled an exception

        async def count_received() -> Message:
            nonlocal received, gone
            message = await receive()
            if message["type"] == "http.disconnect" and not (gone or answered):
                gone = True
                self._metrics.disconnects.inc()
            # Bytes are counted as they arrive: a chunked body has no content-length, and a client may send a wrong one.
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise BodyTooLarge
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal answered, status
            if message["type"] == "http.response.start":
                answered = True
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[HEADER] = request_id
                headers[TIMING_HEADER] = timings.format_header(time.monotonic())
                if self._drain.reason is not None:  # the client's next request goes to another replica
                    headers["connection"] = "close"
                self._drain.start_answer()
            await send(message)

        try:
            if scope["path"] in _PROBES:
                await self._app(scope, count_received, send_with_headers)
            else:
                await self._serve(scope, count_received, send_with_headers)
        finally:
            self._record(scope, status, time.monotonic())
            REQUEST_ID.reset(entered)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer that the service ends: at once during a drain, or when its time is over."""
        with self._drain.track():
            try:
                if self._drain.reason is None:
                    await self._app(scope, receive, send)
                    return
                with suppress(BodyTooLarge):
                    # Unread bytes at the close would take the answer from the client.
                    while (await receive()).get("more_body", False):
                        pass
            except asyncio.CancelledError:
                task = asyncio.current_task()
                # Not everyone who cancels is the drain, and an answer that has begun cannot become another one.
                if task is None or not self._drain.is_cancelled(task):
                    raise
                task.uncancel()
            response = await self._answer(Request(scope, receive), NotReady(self._drain.reason or ""))
            await response(scope, receive, send)

    def _record(self, scope: Scope, status: int, now_s: float) -> None:
        """Count and log a request; the only part of its content that is logged is the number of items."""
        # The router sets `route` when a path matches; all other paths share one label.
        route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.requests.labels(route, str(status)).inc()
        timings: Timings = scope["state"]["timings"]
        duration_s = now_s - timings.arrived_s
        self._metrics.request_s.labels(route).observe(duration_s)
        for phase, seconds in timings.measure_phases().items():
            self._metrics.phase_s.labels(phase).observe(seconds)
        fields: dict[str, object] = {"method": scope["method"], "route": route, "status": status}
        fields |= {"ms": round(duration_s * 1000, 1), "request_id": scope["state"]["request_id"]}
        # The name of the key, and the number of items, where they are known.
        fields |= {name: scope["state"][name] for name in ("caller", "items") if name in scope["state"]}
        if route not in _PROBES or status >= 400:
            if self._tracer is not None:
                fields |= _trace(self._tracer, scope, now_s, fields)
            _access.info("request", extra={"fields": fields})
        if status in _WARNINGS:
            self._warnings.warn(str(status), _WARNINGS[status], **fields)


def _trace(tracer: Tracer, scope: Scope, now_s: float, fields: Mapping[str, object]) -> dict[str, object]:
    """Record the spans of a request, and return the field of its log line that names the trace, if it is sampled."""
    sent = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _TRACE_HEADERS}
    timings: Timings = scope["state"]["timings"]
    attributes: dict[str, str | int] = {
        "http.request.method": scope["method"],
        "http.route": str(fields["route"]),
        "http.response.status_code": int(str(fields["status"])),
        "assay.request_id": scope["state"]["request_id"],
        "assay.sequences": timings.sequences,
        "assay.sequences_cached": timings.cached,
        "assay.passes": timings.passes,
    }
    trace_id = tracer.record(timings, now_s, f"{scope['method']} {fields['route']}", sent, attributes)
    return {} if trace_id is None else {"trace_id": trace_id}


async def run_while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, and cancel it when the client goes away; Starlette itself would let it run.

    Call it only after the body has been read: from then on, the only message that can still arrive is the disconnect.

    Raises:
        ClientGone: the client closed its connection before `work` ended.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("the client closed its connection")
        return working.result()
    finally:  # cancelling a task that has ended does nothing
        working.cancel()
        leaving.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _read_sent_id(scope: Scope) -> str | None:
    """Return the id in the request's header; None where the header is missing or not ASCII."""
    for name, value in scope["headers"]:
        if name == HEADER.encode() and value.isascii():
            return str(value.decode())
    return None
