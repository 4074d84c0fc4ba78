"""Estimate how many tokens per second the engine computes, from its forward passes; no clock, pure arithmetic."""

import math

# Seconds of computing over which a pass loses two thirds of its weight; a rate that changes is followed in seconds.
MEMORY_S = 5.0


class DecayingRatio:
    """A quotient of two sums, in which earlier terms weigh less.

    Args:
        memory: sum of denominators after which the weight of a term has fallen to 1/e.
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._above = 0.0
        self._below = 0.0

    def add(self, above: float, below: float) -> None:
        """Add a term to both sums."""
        kept = math.exp(-below / self._memory)
        self._above, self._below = self._above * kept + above, self._below * kept + below

    @property
    def value(self) -> float | None:
        """Return the quotient; None before the first term."""
        return self._above / self._below if self._below > 0 else None


class DrainRate:
    """The tokens per second that leave the queue while work waits.

    A pass shows this rate only if more work was waiting, or if it was large. A short text alone says how long a pass
    takes, and not how much fits into one. All other passes give a lower bound. So does the first pass, in which
    libraries load kernels and take memory.
    """

    def __init__(self) -> None:
        self._measured = DecayingRatio(MEMORY_S)
        self._bound: float | None = None

    def add(self, tokens: int, seconds: float, *, full: bool) -> bool:
        """Learn from a forward pass, and return whether it has shown the rate itself.

        Args:
            tokens: number of tokens that it computed, above 0.
            seconds: time that it took, above 0.
            full: True if more work was waiting, or the pass was large.
        """
        first, rate = self._bound is None, tokens / seconds
        self._bound = max(rate, self._bound or 0.0)
        known = self._measured.value
        # A pass that is not full and still faster shows that the rate has grown.
        shows = (full and not first) or (known is not None and rate > known)
        if shows:
            self._measured.add(tokens, seconds)
        return shows

    @property
    def is_measured(self) -> bool:
        """Return True if the rate was measured, and is not only a lower bound."""
        return self._measured.value is not None

    @property
    def tokens_per_s(self) -> float | None:
        """Return the rate, or a lower bound of it; None before the first pass."""
        return self._bound if self._measured.value is None else self._measured.value
