"""Hold what both clients share and what needs no `await`: settings, the clock, requests and httpx's errors."""

import asyncio
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Self, TypeAlias, TypeVar

import httpx

from assay_client._addresses import check_api_key, read_endpoints
from assay_client._connections import get_tls
from assay_client._endpoints import Endpoints
from assay_client._protocol import Call, FindHome
from assay_client._raw_answer import OK, RawAnswer, build_server_error
from assay_client._redaction import Redaction
from assay_client._retry import Event, Policy, Steps, exchange
from assay_client.errors import ConnectError, InvalidAnswer, InvalidInput, Timeout, TransportError

Outcome: TypeAlias = RawAnswer | TransportError | InvalidAnswer  # of one try

T = TypeVar("T")
MineT = TypeVar("MineT")
TransportT = TypeVar("TransportT", httpx.BaseTransport, httpx.AsyncBaseTransport)

NOT_READY = 503
REQUEST_ID = "X-Request-ID"
AFFINITY = "X-Assay-Affinity"
TIMEOUT = "X-Request-Timeout-Ms"
TIMEOUT_MAX_S = 1e6  # ten days; nobody waits as long, and `inf` has no milliseconds
CONNECT_S = 5.0  # for a connection alone: a host that is down must not cost a whole try


class Clock:
    """The source of time and of random numbers, in one place so that tests can replace it."""

    def get_now_s(self) -> float:
        """Return the monotonic time in seconds."""
        return time.monotonic()

    def draw(self) -> float:
        """Draw a random number in [0, 1)."""
        return random.random()  # noqa: S311  # spreads retries; guards nothing

    def sleep(self, delay_s: float, stop: threading.Event) -> None:
        """Wait `delay_s`, or until `stop` is set."""
        stop.wait(delay_s)

    async def sleep_async(self, delay_s: float) -> None:
        """Wait `delay_s`; the wait may be cancelled."""
        await asyncio.sleep(delay_s)


@dataclass(frozen=True)
class Outgoing:
    """A request that can be sent to any endpoint; `body` is None for GET."""

    path: str
    request_id: str
    headers: Mapping[str, str]
    body: bytes | None

    def build(self, endpoint: str, http: httpx.Client | httpx.AsyncClient, timeout_s: float) -> httpx.Request:
        """Return the request to an endpoint; its id is the same in all tries.

        It says how long this try waits, so that the service does no work whose answer would come too late.
        """
        method = "GET" if self.body is None else "POST"
        headers = {**self.headers, TIMEOUT: str(max(1, int(min(timeout_s, TIMEOUT_MAX_S) * 1000)))}
        return http.build_request(method, endpoint + self.path, headers=headers, content=self.body)


class BaseClient(Generic[MineT, TransportT]):
    """A client without its I/O.

    Args:
        base_url: the address of the service, for example "http://127.0.0.1:8000", or a list of addresses that serve the
            same models. With several, items of one prompt go to the same address while it is well (`affinity_key`), and
            to another one while it fails.
        api_key: the key that is sent as `Authorization: Bearer`; it is never part of an error or of the client's repr.
        timeout_s: the seconds that one try may take; a connection must be made within 5 of them.
        deadline_s: the seconds that one method call may take, with all its chunks, retries and waits.
        max_retries: the number of tries after the first, per request, at all addresses together.
        chunk_size: the most items of one request; longer lists are split.
        max_concurrency: the most requests that are in flight at once. They are counted over all calls of the client in
            one process, or for `AsyncRewardClient` in one event loop. Further requests wait; that time counts towards
            `deadline_s`.
        transport: an httpx transport that carries the requests instead of the network.
        headers: HTTP headers that are sent with every request.
        ca_file: the path of a PEM file with the certificates that are trusted in place of the usual ones. It is for a
            service with a certificate of your own.
        clock: the source of time and of random numbers; for tests.

    Close it, or use it as a context manager. Every method raises `TransportError` or `ServerError` when another try is
    pointless, `InvalidAnswer` when the answer breaks the wire format, and `InvalidInput` before anything is sent.

    A client may be used in a forked process, and can be pickled, with its key: each process opens connections of its
    own. A client that was given a `transport` can do neither, because the transport belongs to the process that made
    it.

    Raises:
        InvalidInput: a number is out of range, an address is not an http or https address or has a user name or
            password. Or `api_key` has characters that a header cannot hold, or `ca_file` has no certificate.
    """

    def __init__(  # noqa: PLR0913  # the public knobs, all by name
        self,
        base_url: str | Sequence[str],
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        deadline_s: float = 300.0,
        max_retries: int = 5,
        chunk_size: int = 64,
        max_concurrency: int = 8,
        transport: TransportT | None = None,
        headers: Mapping[str, str] | None = None,
        ca_file: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        if chunk_size < 1 or max_concurrency < 1:
            raise InvalidInput("`chunk_size` and `max_concurrency` must be at least 1")
        self.chunk_size = chunk_size
        self.max_concurrency = max_concurrency
        self.endpoints = read_endpoints(base_url)
        self.base_url = self.endpoints[0]
        self._endpoints = Endpoints(self.endpoints)
        self._headers = dict(headers or {})  # a copy, because the caller may change its own
        self._api_key = api_key
        if api_key is not None:
            check_api_key(api_key, self._headers)
        self._ca_file = ca_file
        if ca_file is not None:
            get_tls(ca_file)  # so that a wrong file is an error now
        self._redaction = Redaction.of(api_key, self._headers)
        self._policy = Policy(timeout_s, deadline_s, max_retries)
        self._transport: TransportT | None = transport
        # A transport belongs to this process, and a fork must not share its sockets.
        self._made_in = os.getpid()
        # A forked process inherits this dictionary, and finds no entry under its own id.
        self._by_pid: dict[int, MineT] = {}
        # Neither can be copied into another process, so that such a client cannot be pickled.
        self._fixed = transport is not None or clock is not None
        self._clock = clock or Clock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.endpoints))})"

    def __reduce__(self) -> tuple[partial[Self], tuple[()]]:
        """Return the client's settings, from which a copy is made that opens connections of its own.

        Raises:
            TypeError: the client was given a `transport` or a `clock`.
        """
        if self._fixed:
            raise TypeError(
                "a client that was given `transport` or `clock` cannot be pickled; make one where it is used"
            )
        settings: dict[str, Any] = {
            "api_key": self._api_key,
            "timeout_s": self._policy.timeout_s,
            "deadline_s": self._policy.deadline_s,
            "max_retries": self._policy.max_retries,
            "chunk_size": self.chunk_size,
            "max_concurrency": self.max_concurrency,
            "headers": self._headers,
            "ca_file": self._ca_file,
        }
        return partial(type(self), self.endpoints, **settings), ()

    def _get_state(self, make: Callable[[], MineT]) -> MineT:
        """Return the connections of this process; `make` makes them if they are missing.

        A fork copies sockets, and two processes on one connection would read each other's answers. So each process
        opens its own, and leaves those of its parent alone: closing them could end the parent's. No lock is taken,
        because a fork could leave it locked for ever.
        """
        mine = self._by_pid.get(os.getpid())
        return self._by_pid.setdefault(os.getpid(), make()) if mine is None else mine

    def _is_elsewhere(self) -> bool:
        """Return whether the transport that was given belongs to another process."""
        return self._transport is not None and self._made_in != os.getpid()

    def _build_http_settings(self) -> dict[str, Any]:
        """Return the arguments of a new httpx client.

        Raises:
            TransportError: the transport belongs to another process.
        """
        if self._is_elsewhere():
            raise TransportError(
                "this client was given a `transport` in another process, where it stays; make a client in this process"
            )
        # The slots limit the concurrency; a limit here too would let tries time out while they wait in line.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.max_concurrency)
        key = {} if self._api_key is None else {"Authorization": f"Bearer {self._api_key}"}
        settings = {"transport": self._transport, "headers": {**self._headers, **key}, "limits": limits}
        # Shared, because loops and copies of a client are made often: `asyncio.run` for each call, process pools.
        return settings if self._transport is not None else {**settings, "verify": get_tls(self._ca_file)}

    def _get_find_home(self) -> FindHome | None:
        """Return the function that finds the endpoint of a key now; None if there is only one."""
        if len(self.endpoints) == 1:
            return None
        return partial(self._endpoints.find, now_s=self._clock.get_now_s())

    def _encode(self, call: Call[T]) -> Outgoing:
        """Return the request of a call, with an id of its own."""
        # A caller's headers may not replace it: answers are matched to requests by it.
        headers = {REQUEST_ID: uuid.uuid4().hex}
        body = call.encode_body()
        if body is not None:
            headers["Content-Type"] = "application/json"
        if call.key is not None:
            headers[AFFINITY] = call.key
        return Outgoing(call.path, headers[REQUEST_ID], headers, body)

    def _start_steps(self, call: Call[T], outgoing: Outgoing, deadline_at_s: float) -> Steps[T]:
        return exchange(
            call.parse,
            self._policy,
            self._endpoints,
            key=call.key or "",
            request_id=outgoing.request_id,
            deadline_at_s=deadline_at_s,
            now_s=self._clock.get_now_s(),
            redaction=self._redaction,
        )

    def _compute_deadline_s(self) -> float:
        return self._clock.get_now_s() + self._policy.deadline_s

    def _build_event(self, outcome: Outcome | None = None) -> Event:
        return Event(self._clock.get_now_s(), self._clock.draw(), outcome)


def check_request_id(request: httpx.Request, response: httpx.Response, redaction: Redaction) -> None:
    """Check that an answer belongs to this request: it carries the id that was sent.

    The service repeats `X-Request-ID` in every answer. An error page of a proxy may have none.

    Raises:
        InvalidAnswer: the id differs, or an answer with status 200 has none.
    """
    sent, got = request.headers[REQUEST_ID], response.headers.get(REQUEST_ID)
    if got == sent or (got is None and response.status_code != OK):
        return
    if got is None:
        why = f"it has no {REQUEST_ID}; the address is not Assay's, or a proxy drops that header"
    else:
        found = redaction.redact(got)
        why = f"it is to {REQUEST_ID} {found!r}; processes share a connection, or a proxy replaces that header"
    error = InvalidAnswer(f"the answer is not to this request: {why}")
    error.request_id = sent
    raise error


def is_ready(outcome: Outcome, redaction: Redaction) -> bool:
    """Return whether `/ready` answers that the service is ready; a service that cannot be reached is not.

    Raises:
        ServerError: a status that is neither a success nor 503, the status of a service that is not ready.
        InvalidAnswer: the answer is not to this request.
    """
    if isinstance(outcome, InvalidAnswer):
        raise outcome
    if isinstance(outcome, TransportError) or outcome.status == NOT_READY:
        return False
    if not httpx.codes.is_success(outcome.status):
        error = build_server_error(outcome, redaction)
        error.request_id = outcome.headers.get("x-request-id")
        raise error
    return True


def convert_error(error: httpx.RequestError, request: httpx.Request, redaction: Redaction) -> TransportError:
    """Return the client's error for one of httpx, with the address and with the original as its cause.

    An original that repeats the API key, as it does for a malformed header, is not the cause: tracebacks print causes.
    `httpx.DecodingError`, a body that contradicts its `Content-Encoding`, counts as a broken connection.
    """
    kind = Timeout if isinstance(error, httpx.TimeoutException) else ConnectError
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    ours = kind(f"{redaction.redact(what)} ({request.url})")
    # By hand, because the error is returned: retries decide whether it is raised.
    ours.__cause__ = None if redaction.is_in(what) else error
    return ours
