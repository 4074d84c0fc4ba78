"""Know the requests in flight, and end the service only when they are finished or their time is over."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Drain:
    """The requests in flight, and whether new ones are still taken.

    Args:
        drain_s: seconds after `begin` in which the requests in flight are finished.

    Attributes:
        drain_s: the same seconds.
        reason: the reason why no request is taken any more; None while requests are.
    """

    def __init__(self, drain_s: float) -> None:
        self.reason: str | None = None
        self.drain_s = drain_s
        self._since_s = 0.0
        self._running: set[asyncio.Task[None]] = set()
        self._unanswered: set[asyncio.Task[None]] = set()
        self._cancelled: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        """Return the number of requests in flight."""
        return len(self._running)

    @property
    def is_over(self) -> bool:
        """Return True once nothing is in flight any more, or the time is over."""
        return self.reason is not None and (not self._running or time.monotonic() - self._since_s >= self.drain_s)

    def begin(self, reason: str) -> None:
        """Take no more requests; a second call is without effect. Any thread, and a signal handler, may call it."""
        if self.reason is None:
            self._since_s = time.monotonic()
            self.reason = reason

    def expire(self) -> int:
        """Cancel the requests without an answer, and return their number; the event loop calls it."""
        self._cancelled = set(self._unanswered)
        for task in self._cancelled:
            task.cancel()
        return len(self._cancelled)

    def is_cancelled(self, task: asyncio.Task[None]) -> bool:
        """Return whether `expire` has cancelled a task."""
        return task in self._cancelled

    def start_answer(self) -> None:
        """Record that the answer of the current task is being sent, so that it is not cut."""
        self._unanswered -= {asyncio.current_task()}

    @contextmanager
    def track(self) -> Iterator[None]:
        """Count the request of the current task as in flight within the block."""
        task = asyncio.current_task()
        assert task is not None  # requests are handled by tasks
        self._running.add(task)
        self._unanswered.add(task)
        try:
            yield
        finally:
            self._running.discard(task)
            self._unanswered.discard(task)
