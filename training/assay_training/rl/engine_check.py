"""Check that an engine samples from the policy that is trained, by comparing their log-probabilities."""

from assay_training.errors import RunStopped

# Rounding grows as a policy's distributions get sharper, hence the factor. The first mismatch may be 0, hence the
# slack, in nats per token.
MISMATCH_FACTOR, MISMATCH_SLACK = 10, 1e-4


class EngineError(RunStopped):
    """The error of an engine that does not sample from the policy that is trained."""


class EngineCheck:
    """A check of every rollout that the log-probabilities of engine and trainer agree.

    The adapter is the identity in a run's first rollout, so rounding alone explains its mismatch. Later rollouts are
    compared with that floor.

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
        limit = compute_mismatch_limit(self.floor, self._max_mismatch)
        if not mismatch <= limit:
            raise EngineError(
                f"rollout {number}: the log-probabilities of engine and trainer differ by {mismatch:.2g} nats per "
                f"token, and the limit is {limit:.2g}: the engine samples from an earlier adapter or another model"
            )
        self.floor = mismatch if self.floor is None else self.floor
        return {"logprob_mismatch": mismatch, "logprob_mismatch_limit": limit}


def compute_mismatch_limit(floor: float | None, max_mismatch: float) -> float:
    """Return the largest allowed mismatch of engine and trainer, in nats per token.

    Args:
        floor: mismatch while the adapter was the identity, in nats per token; None before it is measured.
        max_mismatch: limit of every rollout, in nats per token.
    """
    return max_mismatch if floor is None else min(MISMATCH_FACTOR * floor + MISMATCH_SLACK, max_mismatch)
