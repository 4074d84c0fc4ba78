"""Check that an engine samples from the policy that is trained, by its log-probabilities."""

from assay_training.errors import RunStopped

# Rounding grows as a policy's distributions get sharper, and the first mismatch may be 0.
MISMATCH_FACTOR, MISMATCH_SLACK = 10, 1e-4


class EngineError(RunStopped):
    """The engine does not sample from the policy that is trained."""


class EngineCheck:
    """Compares the log-probabilities of engine and trainer in every rollout.

    The adapter is the identity in a run's first rollout, so its mismatch is what rounding alone explains.

    Args:
        max_mismatch: the largest mismatch allowed in any rollout, in nats per token.

    Attributes:
        floor: the mismatch of the run's first rollout, in nats per token; None before it.
    """

    def __init__(self, max_mismatch: float) -> None:
        self._max_mismatch = max_mismatch
        self.floor: float | None = None

    def check(self, number: int, mismatch: float) -> dict[str, float]:
        """Return the mismatch of a rollout and its limit, for metrics.

        Args:
            number: the number of the step or round.
            mismatch: the mean absolute difference of the engine's and the trainer's log-probabilities, in nats.

        Raises:
            EngineError: the mismatch is larger than rounding explains.
        """
        limit = mismatch_limit(self.floor, self._max_mismatch)
        if not mismatch <= limit:
            raise EngineError(
                f"rollout {number}: log-probabilities of engine and trainer are {mismatch:.2g} apart, the limit is "
                f"{limit:.2g}: the engine lags behind, or computes something else"
            )
        self.floor = mismatch if self.floor is None else self.floor
        return {"logprob_mismatch": mismatch, "logprob_mismatch_limit": limit}


def mismatch_limit(floor: float | None, max_mismatch: float) -> float:
    """Return how far apart the log-probabilities of engine and trainer may be, in nats per token.

    Args:
        floor: the mismatch while the adapter was the identity; None before it was measured.
        max_mismatch: the limit of every rollout, in nats per token.
    """
    return max_mismatch if floor is None else min(MISMATCH_FACTOR * floor + MISMATCH_SLACK, max_mismatch)
