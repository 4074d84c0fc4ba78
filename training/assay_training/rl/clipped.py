"""Compute the clipped objective of a PPO update ([PPO]), and tally its diagnostics."""

from collections.abc import Sequence

import torch

from assay_training.algorithms import ppo
from assay_training.config.model import Adam
from assay_training.config.ppo import Ppo
from assay_training.loop.step import MicroBatch, Total
from assay_training.models.actor import Actor
from assay_training.rl.experience import Experience

# Sums over tokens, not means, because processes and micro-batches add them up; means are taken at the end.
TALLY_NAMES = (
    "ratio",
    "ratio_squared",
    "approx_kl",
    "clip_fraction",
    "value_clip_fraction",
    "policy_loss",
    "value_loss",
)


class ClippedObjective:
    """The clipped losses of policy and values, averaged over all completion tokens of a mini-batch.

    `L = Σ_t (w_t · L_policy,t + value_coef · L_value,t) / tokens of the mini-batch`

    Args:
        actor: policy and value head that are trained.
        settings: clip ranges and the coefficient of the value loss.
        optimizer: settings that name the compute dtype.

    Attributes:
        tally: sums over this process' tokens since `begin`, in the order of `TALLY_NAMES`; float64 `[7]`.
    """

    def __init__(self, actor: Actor, settings: Ppo, optimizer: Adam) -> None:
        self._actor, self._settings, self._compute = actor, settings, optimizer
        self.tally = torch.zeros(len(TALLY_NAMES), dtype=torch.float64)

    def begin(self, batch: Sequence[Experience], mine: Sequence[MicroBatch], total: Total) -> int:
        """Clear the tally, and return the completion tokens of the mini-batch, so that all tokens weigh the same."""
        self.tally = torch.zeros(len(TALLY_NAMES), dtype=torch.float64, device=self._actor.policy.device)
        return sum(experience.example.targets for experience in batch)

    def loss(self, part: Sequence[Experience], shared: int) -> torch.Tensor:
        """Return the micro-batch's share of the mini-batch's loss, fp32 scalar, and add to the tally.

        Args:
            part: experiences of the micro-batch; below, `t` counts their completion tokens, end to end.
            shared: completion tokens of the whole mini-batch.
        """
        outputs = self._actor.forward([experience.example for experience in part], self._compute)
        logprobs, values, advantages, returns, weights = (
            torch.cat([getattr(experience, name) for experience in part])
            for name in ("logprobs", "values", "advantages", "returns", "weights")
        )
        settings = self._settings
        policy = weights * ppo.compute_policy_losses(outputs.logprobs, logprobs, advantages, settings.clip_range)
        value = ppo.compute_value_losses(outputs.values, values, returns, settings.value_clip_range)
        # Diagnostics only: the loss above has its own ratio, with gradient.
        with torch.no_grad():
            ratio = torch.exp(outputs.logprobs - logprobs)
            clipped = (
                (ratio - 1).abs() > settings.clip_range,
                (outputs.values - values).abs() > settings.value_clip_range,
            )
            tallied = (ratio, ratio.square(), ppo.estimate_k2(outputs.logprobs, logprobs), *clipped, policy, value)
            self.tally += torch.stack([column.double().sum() for column in tallied])
        return (policy.sum() + settings.value_coef * value.sum()) / shared
