"""What an update of PPO makes smaller, and what is counted on the way."""

from collections.abc import Sequence

import torch

from assay_training.algorithms import ppo
from assay_training.config.model import Adam
from assay_training.config.ppo import Ppo
from assay_training.loop.step import MicroBatch, Total
from assay_training.models.actor import Actor
from assay_training.rl.experience import Experience

NAMES = ("ratio", "ratio_squared", "approx_kl", "clip_fraction", "value_clip_fraction", "policy_loss", "value_loss")


class Clipped:
    """The clipped losses of policy and values, averaged over all completion tokens of a mini-batch.

    Args:
        actor: what is trained.
        settings: of the objective.
        optimizer: compute dtype.

    Attributes:
        tally: of this process' tokens since `begin`, the sums that `NAMES` names; float64.
    """

    def __init__(self, actor: Actor, settings: Ppo, optimizer: Adam) -> None:
        self._actor, self._settings, self._optimiser = actor, settings, optimizer
        self.tally = torch.zeros(len(NAMES), dtype=torch.float64)

    def begin(self, batch: Sequence[Experience], mine: Sequence[MicroBatch], total: Total) -> int:
        """The mini-batch's completion tokens: every one weighs the same, whatever micro-batch it is in."""
        self.tally = torch.zeros(len(NAMES), dtype=torch.float64, device=self._actor.policy.device)
        return sum(experience.example.targets for experience in batch)

    def loss(self, part: Sequence[Experience], shared: int) -> torch.Tensor:
        """The micro-batch's share of the mini-batch's loss."""
        look = self._actor.forward([experience.example for experience in part], self._optimiser)
        logprobs, values, advantages, returns, weights = (
            torch.cat([getattr(experience, name) for experience in part])
            for name in ("logprobs", "values", "advantages", "returns", "weights")
        )
        settings = self._settings
        policy = weights * ppo.policy_losses(look.logprobs, logprobs, advantages, settings.clip_range)
        value = ppo.value_losses(look.values, values, returns, settings.value_clip_range)
        with torch.no_grad():
            ratio = torch.exp(look.logprobs - logprobs)
            clipped = (
                (ratio - 1).abs() > settings.clip_range,
                (look.values - values).abs() > settings.value_clip_range,
            )
            counted = (ratio, ratio.square(), ppo.k2(look.logprobs, logprobs), *clipped, policy, value)
            self.tally += torch.stack([of.double().sum() for of in counted])
        return (policy.sum() + settings.value_coef * value.sum()) / shared
