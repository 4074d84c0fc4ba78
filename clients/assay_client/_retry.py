"""When to try again, without a clock: one logical request as a generator that both clients drive.

Nothing here waits, sends or draws: `client` carries out each step and says what came of it and when.
Scoring changes nothing on the server, so every request may be sent again.
"""

import json
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Generic, TypeAlias, TypeVar

from assay_client.errors import (
    AssayError,
    DeadlineExceeded,
    InvalidInput,
    ServerError,
    Timeout,
    TransportError,
)

OK = 200
RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 8.0
BACKOFF_JITTER = 0.5  # a wait is drawn from the upper half of its backoff
RETRY_AFTER_MAX_S = 60.0  # a server that asks for an hour is asked again after a minute
RETRY_AFTER_SPREAD = 0.25  # so that clients told the same second do not all come back in it
EXCERPT_CHARS = 120  # of a body that is not ours, in an error message

T = TypeVar("T")


@dataclass(frozen=True)
class Policy:
    """How long and how often.

    Attributes:
        timeout_s: seconds one try may take.
        deadline_s: seconds a whole call may take, with all its retries, waits and chunks.
        max_retries: tries after the first; 0 tries once.

    Raises:
        InvalidInput: a value out of range.
    """

    timeout_s: float
    deadline_s: float
    max_retries: int

    def __post_init__(self) -> None:
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
    """Step: send the request and wait at most `timeout_s` for the whole answer."""

    timeout_s: float


@dataclass(frozen=True)
class Sleep:
    """Step: wait `delay_s`."""

    delay_s: float


@dataclass(frozen=True)
class Done(Generic[T]):
    """Last step: the answer."""

    value: T


@dataclass(frozen=True)
class Event:
    """What came of a step: monotonic time, a random number in [0, 1), after `Send` an answer or error."""

    now_s: float
    draw: float
    outcome: Reply | TransportError | None = None


Steps: TypeAlias = Generator[Send | Sleep | Done[T], Event, None]


def exchange(
    parse: Callable[[bytes], T], policy: Policy, *, request_id: str, deadline_at_s: float, now_s: float
) -> Steps[T]:
    """One logical request with its retries, as steps to carry out.

    Raises:
        DeadlineExceeded: the time ran out before a try or during one.
        TransportError, ServerError: the last try's failure, when there is no use or no time in trying again.
        InvalidAnswer: what `parse` raised; not tried again.
    """
    try:
        yield from _steps(parse, policy, deadline_at_s, now_s)
    except AssayError as error:
        error.request_id = request_id
        raise


def _steps(parse: Callable[[bytes], T], policy: Policy, deadline_at_s: float, now_s: float) -> Steps[T]:
    tries = 0
    while True:
        timeout_s = min(policy.timeout_s, deadline_at_s - now_s)
        if timeout_s <= 0:
            raise DeadlineExceeded(f"no time left after {tries} tries within {policy.deadline_s:g} s")
        event = yield Send(timeout_s)
        tries += 1
        outcome = event.outcome
        if isinstance(outcome, Reply) and outcome.status == OK:
            yield Done(parse(outcome.body))
            return
        assert outcome is not None
        failure = refusal(outcome) if isinstance(outcome, Reply) else outcome
        if isinstance(failure, Timeout) and timeout_s < policy.timeout_s:
            raise DeadlineExceeded(f"no answer within {policy.deadline_s:g} s, {tries} tries") from failure
        delay_s = retry_delay_s(
            failure,
            tries=tries,
            max_retries=policy.max_retries,
            asked_s=retry_after_s(outcome.headers) if isinstance(outcome, Reply) else None,
            left_s=deadline_at_s - event.now_s,
            draw=event.draw,
        )
        if delay_s is None:
            failure.add_note(f"after {tries} tries")
            raise failure
        now_s = (yield Sleep(delay_s)).now_s


def retry_delay_s(
    failure: AssayError, *, tries: int, max_retries: int, asked_s: float | None, left_s: float, draw: float
) -> float | None:
    """Seconds to wait before the next try, or None: give up.

    Tried again are broken connections, tries that timed out, and `RETRY_STATUSES` unless the body says that
    it is not retryable. The wait doubles from `BACKOFF_FIRST_S` to `BACKOFF_MAX_S` and is jittered down;
    `asked_s` (capped) is the least that is waited. A wait that does not fit before the deadline is not begun.

    Args:
        failure: what came of the last try.
        tries: tries so far, at least 1.
        max_retries: tries allowed after the first.
        asked_s: seconds from `Retry-After`, or None.
        left_s: seconds to the deadline.
        draw: random, in [0, 1).
    """
    if tries > max_retries:
        return None
    if isinstance(failure, ServerError):
        if failure.status not in RETRY_STATUSES or failure.retryable is False:
            return None
    elif not isinstance(failure, TransportError):
        return None
    # The exponent is bounded before the power is taken: 2.0**2000 overflows.
    backoff_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(tries - 1, 32))
    delay_s = backoff_s * (1 - BACKOFF_JITTER * (1 - draw))
    if asked_s is not None:
        delay_s = max(delay_s, min(asked_s, RETRY_AFTER_MAX_S) * (1 + RETRY_AFTER_SPREAD * draw))
    return delay_s if delay_s < left_s else None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Retry-After` asks for, or None if it is missing or unreadable.

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
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def refusal(reply: Reply) -> ServerError:
    """What the server said instead of an answer; an excerpt of the body where it is not the wire's error."""
    try:
        body = json.loads(reply.body)
    except (ValueError, RecursionError):
        body = None
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("code"), str):
        text = reply.body[:EXCERPT_CHARS].decode(errors="replace").strip()
        return ServerError(text or "no body", status=reply.status, code=f"http_{reply.status}")
    param, retryable = error.get("param"), error.get("retryable")
    return ServerError(
        str(error.get("message")),
        status=reply.status,
        code=error["code"],
        param=param if isinstance(param, str) else None,
        retryable=retryable if isinstance(retryable, bool) else None,
    )
