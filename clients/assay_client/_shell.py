"""What both clients are made of, all that needs no `await`: settings, the clock, requests, httpx's errors."""

import asyncio
import random
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar

import httpx

from assay_client._protocol import Call
from assay_client._retry import Event, Policy, Reply, Steps, exchange, refusal
from assay_client.errors import ConnectError, InvalidInput, Timeout, TransportError

T = TypeVar("T")
HttpT = TypeVar("HttpT", httpx.Client, httpx.AsyncClient)
TransportT = TypeVar("TransportT", httpx.BaseTransport, httpx.AsyncBaseTransport)

NOT_READY = 503


class Clock:
    """Time and chance, in one place so that tests can replace them."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def draw(self) -> float:
        """A random number in [0, 1)."""
        return random.random()  # noqa: S311  # spreads retries; guards nothing

    def sleep(self, delay_s: float, stop: threading.Event) -> None:
        """Waits `delay_s`, or until `stop` is set."""
        stop.wait(delay_s)

    async def async_sleep(self, delay_s: float) -> None:
        """Waits `delay_s`; may be cancelled."""
        await asyncio.sleep(delay_s)


class Shell(ABC, Generic[HttpT, TransportT]):
    """A client without its I/O.

    Args:
        base_url: where the service is, "http://127.0.0.1:8000".
        timeout_s: seconds one try may take.
        deadline_s: seconds one method call may take, with all its chunks, retries and waits.
        max_retries: tries after the first, per request.
        chunk_size: items per request; longer lists are split.
        max_concurrency: requests of one method call in flight at once.
        transport: what carries the requests instead of the network.
        headers: sent with every request.
        clock: time and chance; for tests.

    Close it, or use it as a context manager. Every method raises `TransportError` or `ServerError` when there
    is no use in trying again, `InvalidAnswer` when the answer breaks the wire, `InvalidInput` before sending.

    Raises:
        InvalidInput: a number out of range, or `base_url` is no http(s) address.
    """

    def __init__(  # noqa: PLR0913  # the public knobs, all by name
        self,
        base_url: str,
        *,
        timeout_s: float = 30.0,
        deadline_s: float = 300.0,
        max_retries: int = 5,
        chunk_size: int = 64,
        max_concurrency: int = 8,
        transport: TransportT | None = None,
        headers: Mapping[str, str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        if chunk_size < 1 or max_concurrency < 1:
            raise InvalidInput("`chunk_size` and `max_concurrency` must be at least 1")
        self.chunk_size = chunk_size
        self.max_concurrency = max_concurrency
        if not base_url.startswith(("http://", "https://")):
            raise InvalidInput(f"the service's address must begin with http:// or https://, not {base_url!r}")
        self._policy = Policy(timeout_s, deadline_s, max_retries)
        self._clock = clock or Clock()
        self._http: HttpT = self._open(base_url, transport, headers or {})

    @abstractmethod
    def _open(self, base_url: str, transport: TransportT | None, headers: Mapping[str, str]) -> HttpT:
        """The httpx client that carries the requests."""

    def _limits(self) -> httpx.Limits:
        # The call limits its concurrency; a limit here too would let tries time out while they wait in line.
        return httpx.Limits(max_connections=None, max_keepalive_connections=self.max_concurrency)

    def _request(self, call: Call[T]) -> httpx.Request:
        """The request of a call; its id is the same in all tries."""
        headers = {"X-Request-ID": uuid.uuid4().hex}
        body = call.body()
        if body is None:
            return self._http.build_request("GET", call.path, headers=headers)
        headers["Content-Type"] = "application/json"
        return self._http.build_request("POST", call.path, headers=headers, content=body)

    def _steps(self, call: Call[T], request: httpx.Request, deadline_at_s: float) -> Steps[T]:
        return exchange(
            call.parse,
            self._policy,
            request_id=request.headers["X-Request-ID"],
            deadline_at_s=deadline_at_s,
            now_s=self._clock.now_s(),
        )

    def _deadline_at_s(self) -> float:
        return self._clock.now_s() + self._policy.deadline_s

    def _event(self, outcome: Reply | TransportError | None = None) -> Event:
        return Event(self._clock.now_s(), self._clock.draw(), outcome)


def is_ready(outcome: Reply | TransportError) -> bool:
    """What `/ready` says; a service that is not there is not ready. Raises ServerError for other statuses."""
    if isinstance(outcome, TransportError) or outcome.status == NOT_READY:
        return False
    if not httpx.codes.is_success(outcome.status):
        raise refusal(outcome)
    return True


def transport_error(error: httpx.RequestError) -> TransportError:
    """Our name for httpx's error, with the original as its cause.

    `httpx.DecodingError`, a body that is not what its `Content-Encoding` says, counts as a broken connection.
    """
    kind = Timeout if isinstance(error, httpx.TimeoutException) else ConnectError
    ours = kind(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    ours.__cause__ = error
    return ours
