"""Decide whether a request may wait in the queue, and when a refused one may come back; pure.

Refusing at once costs nothing. A request that waits longer than its client costs a whole forward pass, whose result
nobody reads.
"""

import math
from dataclasses import dataclass

from assay_service.errors import DeadlineExceeded, Overloaded, ServingError

ANONYMOUS = "anonymous"
RETRY_AFTER_MAX_S = 60
# While the speed is not known, the queue takes the work of this many passes.
FIRST_PASSES = 2
# A rate that was measured longer ago is not a reason to refuse a request: the engine tries again.
TRUST_S = 60.0


@dataclass(frozen=True, slots=True)
class Terms:
    """The conditions under which a request is scored.

    Attributes:
        caller: name of who asks; callers share the engine.
        deadline_s: time on the monotonic clock, in seconds, after which nobody waits for the answer.
        exempt: True admits the request always, as for probes.
    """

    caller: str = ANONYMOUS
    deadline_s: float = math.inf
    exempt: bool = False


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Limits of the queue.

    Attributes:
        max_wait_s: longest estimated time before the turn of a request.
        max_tokens: most tokens that wait.
        max_items: most sequences that wait.
    """

    max_wait_s: float = math.inf
    max_tokens: float = math.inf
    max_items: float = math.inf


@dataclass(frozen=True, slots=True)
class Load:
    """The state of the engine that decides about a request.

    Attributes:
        ahead_tokens: number of tokens that are computed before the request is finished, without its own.
        waiting_tokens: number of tokens that wait.
        waiting_items: number of sequences that wait.
        tokens_per_s: observed rate, or a lower bound of it; None before the first pass.
        first_tokens: most tokens that wait while the rate is not measured.
        is_measured: True if the rate is not only a lower bound.
        is_recent: True if the rate was measured, and not too long ago.
    """

    ahead_tokens: float
    waiting_tokens: float
    waiting_items: int
    tokens_per_s: float | None
    first_tokens: int
    is_measured: bool
    is_recent: bool


def find_refusal(load: Load, limits: QueueLimits, *, tokens: float, items: int, left_s: float) -> ServingError | None:
    """Return the error of a request that may not wait; None for one that may.

    An empty queue takes a request of any size, unless a recent rate says that it cannot be in time.

    Args:
        load: state of the engine.
        limits: limits of the queue.
        tokens: number of tokens of the request; 0 if they are not known yet.
        items: number of its sequences.
        left_s: seconds until its client gives up.
    """
    if left_s <= 0:
        return DeadlineExceeded("the time of the request was over before it could be scored", reason="deadline")
    return (
        _check_deadline(load, tokens, left_s)
        or _check_wait(load, limits.max_wait_s)
        or _check_room(load, limits, tokens, items)
    )


def _check_deadline(load: Load, tokens: float, left_s: float) -> ServingError | None:
    """Return the error of a request that would end too late; None for one that would not, or if nobody knows."""
    if not load.tokens_per_s or not load.is_recent:
        return None
    ahead_s, own_s = load.ahead_tokens / load.tokens_per_s, tokens / load.tokens_per_s
    if own_s > left_s:
        return DeadlineExceeded(
            f"scoring this request takes about {own_s:.1f} s, but its client waits {left_s:.1f} s: send fewer items "
            "at once, or wait longer",
            reason="deadline",
            retryable=False,
        )
    if ahead_s + own_s > left_s:
        message = f"the answer would take about {ahead_s + own_s:.1f} s, but the client waits {left_s:.1f} s"
        return _refuse("deadline", message, ahead_s + own_s - left_s)
    return None


def _check_wait(load: Load, max_wait_s: float) -> Overloaded | None:
    """Return the error of a request before which too much work waits; None for one that may wait."""
    if math.isinf(max_wait_s):
        return None
    rate = load.tokens_per_s or 0.0
    # A lower bound of the rate alone would refuse too much.
    most_tokens = rate * max_wait_s if load.is_measured else max(rate * max_wait_s, load.first_tokens)
    if not load.waiting_tokens or load.ahead_tokens <= most_tokens:
        return None
    if not rate:
        return _refuse("wait", "the first forward pass has not shown the speed yet", 0)
    ahead_s = load.ahead_tokens / rate
    message = f"about {ahead_s:.1f} s of work is waiting; the limit is {max_wait_s:g} (max_queue_wait_s)"
    # Half the limit, so that the returning clients find room, and the engine has work until they come.
    return _refuse("wait", message, ahead_s - max_wait_s / 2)


def _check_room(load: Load, limits: QueueLimits, tokens: float, items: int) -> Overloaded | None:
    """Return the error of a request for which the queue has no room; None for one that fits."""
    # Half the time that the queue takes to drain, as above.
    after_s = load.waiting_tokens / load.tokens_per_s / 2 if load.tokens_per_s else 0.0
    if load.waiting_tokens and load.waiting_tokens + tokens > limits.max_tokens:
        return _refuse("tokens", f"more than {limits.max_tokens} tokens would wait (max_queue_tokens)", after_s)
    if load.waiting_items and load.waiting_items + items > limits.max_items:
        return _refuse("items", f"more than {limits.max_items} items would wait (max_queue_items)", after_s)
    return None


def _refuse(reason: str, message: str, after_s: float) -> Overloaded:
    after_s = min(max(math.ceil(after_s), 1), RETRY_AFTER_MAX_S)
    return Overloaded(f"the queue is full: {message}; try again in {after_s} s", retry_after_s=after_s, reason=reason)
