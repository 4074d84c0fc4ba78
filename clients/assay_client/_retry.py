"""Decide when to try again, without a clock: one logical request is a generator that both clients drive.

Nothing here waits, sends or draws: the clients carry out each step and report its outcome and the time.
Scoring changes nothing on the server, so every request may be sent again, also to another endpoint.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from assay_client._endpoints import RETRY_AFTER_MAX_S, Endpoints, is_foreign
from assay_client._raw_answer import OK, RawAnswer, build_server_error
from assay_client._redaction import NOTHING, Redaction, convert
from assay_client.errors import (
    AssayError,
    DeadlineExceeded,
    InvalidAnswer,
    InvalidInput,
    Overloaded,
    ServerError,
    Timeout,
    TransportError,
)

# A busy or broken server or proxy, which may work later; other statuses would come back unchanged.
RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 8.0
BACKOFF_JITTER = 0.5  # a wait is drawn from the upper half of its backoff
RETRY_AFTER_SPREAD = 0.25  # clients that are given the same second do not all return in it
DEADLINE_SLACK_S = 0.01  # a try that ends this close before the deadline was cut short by it

T = TypeVar("T")


@dataclass(frozen=True)
class Policy:
    """The limits of one request: its time and its number of tries.

    Attributes:
        timeout_s: the seconds that one try may take.
        deadline_s: the seconds that a whole call may take, with all its retries, waits and chunks.
        max_retries: the number of tries after the first; 0 tries once. Refusals of a full queue that say when to come
            back do not count: they cost nothing, and a large call meets many of them.

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
    outcome: RawAnswer | TransportError | InvalidAnswer | None = None


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
        InvalidAnswer: the answer is not the service's, or `parse` refused it, and no other endpoint is left.
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
    failures: list[tuple[str, AssayError]] = []
    while True:
        tried = [url for url, _ in failures]
        timeout_s = min(policy.timeout_s, deadline_at_s - now_s)
        if timeout_s <= 0:
            raise DeadlineExceeded(f"no time is left after {len(tried)} tries within {policy.deadline_s:g} s")
        # Chosen anew for each try, since other requests may have learned meanwhile that it fails.
        endpoint = endpoints.take(key, now_s, tried)
        event = yield Send(endpoint, timeout_s)
        now_s, read = event.now_s, _read_outcome(parse, redaction, endpoint, event)
        endpoints.report(endpoint, None if isinstance(read, Done) else read, now_s)
        if isinstance(read, Done):
            yield read
            return
        failure = read
        failures.append((endpoint, failure))
        # The deadline had shortened this try, so that the deadline is what the caller has to raise.
        if isinstance(failure, Timeout) and timeout_s < policy.timeout_s and deadline_at_s - now_s < DEADLINE_SLACK_S:
            raise DeadlineExceeded(f"no answer within {policy.deadline_s:g} s, {len(failures)} tries") from failure
        delay_s = _compute_delay_s(failures, policy, endpoints, key, deadline_at_s - now_s, event)
        if delay_s is None:
            _note_tries(failures)
            raise failure
        if delay_s > 0:
            now_s = (yield Sleep(delay_s)).now_s


def _note_tries(failures: list[tuple[str, AssayError]]) -> None:
    """Note in the last failure how many tries there were, and at how many endpoints; nothing after a single try."""
    if len(failures) > 1:
        count = len({url for url, _ in failures})
        failures[-1][1].add_note(f"after {len(failures)} tries" + f" at {count} endpoints" * (count > 1))


def _read_outcome(
    parse: Callable[[bytes], T], redaction: Redaction, endpoint: str, event: Event
) -> Done[T] | AssayError:
    """Return the value of a try, or its error."""
    outcome = event.outcome
    assert outcome is not None
    if not isinstance(outcome, RawAnswer):
        return outcome
    if outcome.status != OK:
        return build_server_error(outcome, redaction)
    try:
        return Done(convert(parse, redaction, outcome.body), endpoint)
    except InvalidAnswer as error:
        return error


def _compute_delay_s(
    failures: list[tuple[str, AssayError]],
    policy: Policy,
    endpoints: Endpoints,
    key: str,
    left_s: float,
    event: Event,
) -> float | None:
    """Return the seconds to wait before the next try, wherever it goes; 0 for an endpoint that is well and not tried.

    None means to give up.
    """
    # The last failure decides whether to try, and all of them where.
    failure, tried = failures[-1][1], [url for url, _ in failures]
    # `max_retries=0` means a single try, whatever its outcome.
    tries = len(tried) - (sum(names_its_time(each) for _, each in failures) if policy.max_retries else 0)
    following = endpoints.find(key, event.now_s, tried)
    elsewhere = following not in {url for url, earlier in failures if is_foreign(earlier)}
    if following not in tried and not endpoints.is_resting(following, event.now_s):
        again = is_retryable(failure, tries, policy.max_retries, elsewhere=elsewhere)
        return 0.0 if again and left_s > 0 else None
    asked_s = endpoints.compute_wait_s(following, event.now_s)
    if following == tried[-1] and isinstance(failure, ServerError):
        asked_s = failure.retry_after_s  # exactly as long as it asked
    return compute_retry_delay_s(
        failure,
        tries=tries,
        max_retries=policy.max_retries,
        asked_s=asked_s,
        left_s=left_s,
        draw=event.draw,
        elsewhere=elsewhere,
    )


def names_its_time(failure: AssayError) -> bool:
    """Return whether the service itself refused a request because its queue was full, and said when to come back."""
    return isinstance(failure, Overloaded) and failure.code == "overloaded" and failure.retry_after_s is not None


def is_retryable(failure: AssayError, tries: int, max_retries: int, *, elsewhere: bool = False) -> bool:
    """Return whether a request is tried again, after `tries` tries of which the last one failed.

    `elsewhere` says that the next try goes to an endpoint at which no other program than the service has answered.
    """
    if tries > max_retries:
        return False
    if is_foreign(failure):
        return elsewhere
    if isinstance(failure, ServerError):
        # A `retryable` of None is a proxy's page, which says nothing either way.
        return failure.status in RETRY_STATUSES and failure.retryable is not False
    return isinstance(failure, TransportError)


def compute_retry_delay_s(
    failure: AssayError,
    *,
    tries: int,
    max_retries: int,
    asked_s: float | None,
    left_s: float,
    draw: float,
    elsewhere: bool = False,
) -> float | None:
    """Return the seconds to wait before the next try, or None to give up.

    Broken connections, tries that timed out and `RETRY_STATUSES` are tried again, unless the body says that the request
    is not retryable. The wait doubles from `BACKOFF_FIRST_S` to `BACKOFF_MAX_S` and is shortened by a random part. It
    lasts at least `asked_s`, up to `RETRY_AFTER_MAX_S`. A wait that does not fit before the deadline is not begun.

    Args:
        failure: the error of the last try.
        tries: the number of tries that count so far.
        max_retries: the number of tries that are allowed after the first.
        asked_s: the seconds that `Retry-After` asks for, or None.
        left_s: the seconds to the deadline.
        draw: a random number in [0, 1).
        elsewhere: the argument of `is_retryable`.
    """
    if not is_retryable(failure, tries, max_retries, elsewhere=elsewhere):
        return None
    # The exponent is bounded before the power is taken: 2.0**2000 overflows.
    backoff_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(max(tries - 1, 0), 32))
    delay_s = backoff_s * (1 - BACKOFF_JITTER * (1 - draw))
    if asked_s is not None:
        delay_s = max(delay_s, min(asked_s, RETRY_AFTER_MAX_S) * (1 + RETRY_AFTER_SPREAD * draw))
    return delay_s if delay_s < left_s else None
