"""Decide when to try again, without a clock: one logical request is a generator that both clients drive.

Nothing here waits, sends or draws: the clients carry out each step and report its outcome and the time.
Scoring changes nothing on the server, so every request may be sent again, also to another endpoint.
"""

import json
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Generic, TypeAlias, TypeVar

from assay_client._endpoints import RETRY_AFTER_MAX_S, Endpoints
from assay_client._redaction import NOTHING, Redaction, convert
from assay_client.errors import (
    BY_CODE,
    BY_STATUS,
    AssayError,
    DeadlineExceeded,
    InvalidInput,
    ServerError,
    Timeout,
    TransportError,
)

OK = 200
# A busy or broken server or proxy, which may work later; other statuses would come back unchanged.
RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 8.0
BACKOFF_JITTER = 0.5  # a wait is drawn from the upper half of its backoff
RETRY_AFTER_SPREAD = 0.25  # clients that are given the same second do not all return in it
DEADLINE_SLACK_S = 0.01  # a try that ends this close before the deadline was cut short by it
EXCERPT_CHARS = 120  # the longest part of a foreign body that an error message shows

T = TypeVar("T")


@dataclass(frozen=True)
class Policy:
    """The limits of one request: its time and its number of tries.

    Attributes:
        timeout_s: the seconds that one try may take.
        deadline_s: the seconds that a whole call may take, with all its retries, waits and chunks.
        max_retries: the number of tries after the first; 0 tries once.

    Raises:
        InvalidInput: a value is out of range.
    """

    timeout_s: float
    deadline_s: float
    max_retries: int

    def __post_init__(self) -> None:
        # Written so that NaN, which compares false with everything, is refused too.
        if not (self.timeout_s > 0 and self.deadline_s > 0 and self.max_retries >= 0):
            raise InvalidInput("`timeout_s` and `deadline_s` must be above 0, `max_retries` at least 0")


@dataclass(frozen=True)
class Reply:
    """A complete HTTP answer; `headers` are looked up in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Send:
    """A step: send the request to `endpoint` and wait at most `timeout_s` for the complete answer."""

    endpoint: str
    timeout_s: float


@dataclass(frozen=True)
class Sleep:
    """A step: wait `delay_s`."""

    delay_s: float


@dataclass(frozen=True)
class Done(Generic[T]):
    """The last step, with the answer's value and the endpoint that it came from."""

    value: T
    endpoint: str


@dataclass(frozen=True)
class Event:
    """The outcome of a step.

    Attributes:
        now_s: the monotonic time in seconds after the step.
        draw: a random number in [0, 1).
        outcome: the answer or the error after `Send`; None after `Sleep`.
    """

    now_s: float
    draw: float
    outcome: Reply | TransportError | None = None


Steps: TypeAlias = Generator[Send | Sleep | Done[T], Event, None]


def exchange(  # noqa: PLR0913  # what one request depends on, all by name
    parse: Callable[[bytes], T],
    policy: Policy,
    endpoints: Endpoints,
    *,
    key: str,
    request_id: str,
    deadline_at_s: float,
    now_s: float,
    redaction: Redaction = NOTHING,
) -> Steps[T]:
    """Yield the steps of one logical request, with its retries; the caller carries each out and sends its `Event`.

    Args:
        parse: the function that reads the body of an answer with status 200.
        policy: the limits of time and of tries.
        endpoints: the addresses, and what all requests have met there; outcomes are reported to it.
        key: the affinity key, which decides the order of the endpoints.
        request_id: the request's `X-Request-ID`, which every error carries.
        deadline_at_s: the monotonic time in seconds at which the whole call must have ended.
        now_s: the monotonic time in seconds at the start.
        redaction: the removal of the API key from errors that repeat a part of an answer.

    Raises:
        DeadlineExceeded: the time ran out before a try or during one.
        TransportError: the last try brought no answer, and another is pointless or does not fit before the deadline.
        ServerError: the server refused the last try, and another is pointless or does not fit before the deadline.
        InvalidAnswer: `parse` refused the answer; it is not tried again.
    """
    try:
        yield from _yield_steps(parse, policy, endpoints, key, deadline_at_s, now_s, redaction)
    except AssayError as error:
        error.request_id = request_id
        raise


def _yield_steps(
    parse: Callable[[bytes], T],
    policy: Policy,
    endpoints: Endpoints,
    key: str,
    deadline_at_s: float,
    now_s: float,
    redaction: Redaction,
) -> Steps[T]:
    tried: list[str] = []
    while True:
        timeout_s = min(policy.timeout_s, deadline_at_s - now_s)
        if timeout_s <= 0:
            raise DeadlineExceeded(f"no time is left after {len(tried)} tries within {policy.deadline_s:g} s")
        endpoint = endpoints.take(key, now_s, tried)
        event = yield Send(endpoint, timeout_s)
        tried.append(endpoint)
        now_s, outcome = event.now_s, event.outcome
        if isinstance(outcome, Reply) and outcome.status == OK:
            endpoints.report(endpoint, None, now_s)
            yield Done(convert(parse, redaction, outcome.body), endpoint)
            return
        assert outcome is not None
        failure = build_server_error(outcome, redaction) if isinstance(outcome, Reply) else outcome
        endpoints.report(endpoint, failure, now_s)
        # The deadline had shortened this try, so that the deadline is what the caller has to raise.
        if isinstance(failure, Timeout) and timeout_s < policy.timeout_s and deadline_at_s - now_s < DEADLINE_SLACK_S:
            raise DeadlineExceeded(f"no answer within {policy.deadline_s:g} s, {len(tried)} tries") from failure
        delay_s = _compute_delay_s(failure, policy, endpoints, key, tried, deadline_at_s - now_s, event)
        if delay_s is None:
            places = f" at {len(set(tried))} endpoints" if len(set(tried)) > 1 else ""
            if len(tried) > 1:
                failure.add_note(f"after {len(tried)} tries{places}")
            raise failure
        if delay_s > 0:
            now_s = (yield Sleep(delay_s)).now_s


def _compute_delay_s(
    failure: AssayError,
    policy: Policy,
    endpoints: Endpoints,
    key: str,
    tried: list[str],
    left_s: float,
    event: Event,
) -> float | None:
    """Return the seconds to wait before the next try, wherever it goes; 0 for an endpoint that is well and not tried.

    None means to give up.
    """
    following = endpoints.find(key, event.now_s, tried)
    if following not in tried and not endpoints.is_resting(following, event.now_s):
        return 0.0 if is_retryable(failure, len(tried), policy.max_retries) and left_s > 0 else None
    asked_s = endpoints.compute_wait_s(following, event.now_s)
    if following == tried[-1] and isinstance(failure, ServerError):
        asked_s = failure.retry_after_s  # exactly as long as it asked
    return compute_retry_delay_s(
        failure,
        tries=len(tried),
        max_retries=policy.max_retries,
        asked_s=asked_s,
        left_s=left_s,
        draw=event.draw,
    )


def is_retryable(failure: AssayError, tries: int, max_retries: int) -> bool:
    """Return whether a request is tried again, after `tries` tries of which the last one failed."""
    if tries > max_retries:
        return False
    if isinstance(failure, ServerError):
        # A `retryable` of None is a proxy's page, which says nothing either way.
        return failure.status in RETRY_STATUSES and failure.retryable is not False
    return isinstance(failure, TransportError)


def compute_retry_delay_s(
    failure: AssayError, *, tries: int, max_retries: int, asked_s: float | None, left_s: float, draw: float
) -> float | None:
    """Return the seconds to wait before the next try, or None to give up.

    Broken connections, tries that timed out and `RETRY_STATUSES` are tried again, unless the body says that the request
    is not retryable. The wait doubles from `BACKOFF_FIRST_S` to `BACKOFF_MAX_S` and is shortened by a random part. It
    lasts at least `asked_s`, up to `RETRY_AFTER_MAX_S`. A wait that does not fit before the deadline is not begun.

    Args:
        failure: the error of the last try.
        tries: the number of tries so far, at least 1.
        max_retries: the number of tries that are allowed after the first.
        asked_s: the seconds that `Retry-After` asks for, or None.
        left_s: the seconds to the deadline.
        draw: a random number in [0, 1).
    """
    if not is_retryable(failure, tries, max_retries):
        return None
    # The exponent is bounded before the power is taken: 2.0**2000 overflows.
    backoff_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(tries - 1, 32))
    delay_s = backoff_s * (1 - BACKOFF_JITTER * (1 - draw))
    if asked_s is not None:
        delay_s = max(delay_s, min(asked_s, RETRY_AFTER_MAX_S) * (1 + RETRY_AFTER_SPREAD * draw))
    return delay_s if delay_s < left_s else None


def read_retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that `Retry-After` asks for, or None if it is missing or unreadable.

    A date is measured against the answer's own `Date`, not against this machine's clock, which may be wrong.
    """
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - parsedate_to_datetime(headers["date"])).total_seconds()
        except (ValueError, TypeError, KeyError):
            return None
    # `float` reads "nan" and "inf" too, and a date may be in the past.
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def build_server_error(reply: Reply, redaction: Redaction = NOTHING) -> ServerError:
    """Return the error of an answer whose status is not 200; an excerpt of the body if it is not Assay's error."""
    try:
        body = json.loads(reply.body)
    except (ValueError, RecursionError):
        body = None
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(body, dict) and "error" not in body:
        error = {"code": body.get("code"), "message": body.get("detail")}  # the form of `/compat/openrlhf`
    after_s = read_retry_after_s(reply.headers)
    # Proxies answer with pages of their own, so that nothing about the body of an error is taken for granted.
    if not isinstance(error, dict) or not isinstance(error.get("code"), str):
        text = redaction.redact(reply.body.decode(errors="replace"))[:EXCERPT_CHARS].strip()
        if reply.status in REDIRECTS:  # not followed: another host would get the key, or a POST become a GET
            place = redaction.redact(reply.headers.get("location", "an address that it does not name"))[:EXCERPT_CHARS]
            text = f"the address redirects to {place}; give the address of the service itself"
        kind = BY_STATUS.get(reply.status, ServerError)
        return kind(text or "no body", status=reply.status, code=f"http_{reply.status}", retry_after_s=after_s)
    code, param, retryable = error["code"], error.get("param"), error.get("retryable")
    kind = BY_CODE.get(code) or BY_STATUS.get(reply.status, ServerError)
    return kind(
        redaction.redact(str(error.get("message"))),
        status=reply.status,
        code=redaction.redact(code),
        param=redaction.redact(param) if isinstance(param, str) else None,
        retryable=retryable if isinstance(retryable, bool) else None,
        retry_after_s=after_s,
    )
