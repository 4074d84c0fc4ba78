"""Record when the worker started and finished work, and decide whether it stalls; the time is an argument."""

import math


class Progress:
    """The times of the worker's forward passes, in seconds on the monotonic clock.

    Args:
        max_forward_s: seconds of one forward pass, or without a result while work waits, that are still progress.
    """

    def __init__(self, max_forward_s: float) -> None:
        self._max_forward_s = max_forward_s
        self._success_s: dict[str, float] = {}
        self._pass_since_s: float | None = None
        self._waiting_since_s = -math.inf
        self._finish_s = -math.inf

    @property
    def is_computing(self) -> bool:
        """Return True while a forward pass runs."""
        return self._pass_since_s is not None

    def wait(self, now_s: float) -> None:
        """Record that work begins to wait where none did."""
        self._waiting_since_s = now_s

    def begin_pass(self, now_s: float) -> None:
        """Record that a forward pass begins."""
        self._pass_since_s = now_s

    def end_pass(self, now_s: float) -> None:
        """Record that a forward pass has ended, by a result or a failure."""
        self._pass_since_s, self._finish_s = None, now_s

    def succeed(self, signal: str, now_s: float) -> None:
        """Record a finite logit of a signal."""
        self._success_s[signal] = now_s

    def get_age_of_success_s(self, signal: str, now_s: float) -> float:
        """Return the seconds since a signal last had a finite logit; infinite before the first."""
        return now_s - self._success_s.get(signal, -math.inf)

    def explain_stall(self, waiting_items: int, now_s: float) -> str | None:
        """Return why the worker makes no progress; None while it does, or has nothing to do.

        Args:
            waiting_items: number of sequences that wait.
            now_s: time on the monotonic clock.
        """
        limit_s = self._max_forward_s
        if (since_s := self._pass_since_s) is not None:
            if (age_s := now_s - since_s) > limit_s:
                return f"a forward pass has run for {age_s:.1f} s (lifecycle.max_forward_s is {limit_s:g})"
            return None
        age_s = now_s - max(self._waiting_since_s, self._finish_s)
        if waiting_items and age_s > limit_s:
            return (
                f"{waiting_items} sequences wait, and none was finished for {age_s:.1f} s "
                f"(lifecycle.max_forward_s is {limit_s:g})"
            )
        return None
