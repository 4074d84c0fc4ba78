"""Learn from measurements how long a replica takes; pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls


@dataclass(frozen=True, slots=True)
class Work:
    """What one replica did in a period in which it was always busy.

    Attributes:
        seconds: length of the period.
        forward_s: seconds of forward passes in it.
        passes: number of forward passes.
        tokens: number of tokens that were computed; a shared prompt counts once.
        requests: number of requests that were answered.
        items: number of their items.
    """

    seconds: float
    forward_s: float
    passes: float
    tokens: float
    requests: float
    items: float


@dataclass(frozen=True, slots=True)
class Speed:
    """The times that one replica takes, in seconds, each above or equal to 0.

    Attributes:
        pass_s: fixed time of a forward pass.
        token_s: time of a token that is computed.
        request_s: time for a request beside its passes: HTTP, JSON.
        item_s: time for an item beside its passes: rendering, tokenizing.
    """

    pass_s: float
    token_s: float
    request_s: float = 0.0
    item_s: float = 0.0

    def compute_forward_s(self, tokens: int) -> float:
        """Return the seconds of a forward pass of so many tokens."""
        return self.pass_s + self.token_s * tokens

    def compute_around_s(self, items: int) -> float:
        """Return the seconds that a request of so many items takes beside its passes."""
        return self.request_s + self.item_s * items


def fit_speed(measured: Sequence[Work]) -> Speed:
    """Return the speed that explains the measurements best: least squares of relative errors, without negative times.

    Args:
        measured: work of at least two periods, which differ in tokens per pass and in items per request.

    Raises:
        ValueError: there are fewer than two periods, or a period without a pass.
    """
    if len(measured) < 2 or any(not work.passes or not work.seconds for work in measured):
        raise ValueError("a speed needs at least two periods of work, each with a forward pass")
    forward = [work.forward_s for work in measured]
    # What is not forward pass is the rest of the time, because the replica is never idle.
    around = [max(work.seconds - work.forward_s, 0.0) for work in measured]
    pass_s, token_s = _solve([(work.passes, work.tokens) for work in measured], forward, forward)
    seconds = [work.seconds for work in measured]
    request_s, item_s = _solve([(work.requests, work.items) for work in measured], around, seconds)
    return Speed(pass_s, token_s, request_s, item_s)


def _solve(
    counts: Sequence[tuple[float, float]], times: Sequence[float], scale: Sequence[float]
) -> tuple[float, float]:
    weights = 1 / np.asarray(scale)
    found, _ = nnls(np.asarray(counts) * weights[:, None], np.asarray(times) * weights)
    return float(found[0]), float(found[1])
