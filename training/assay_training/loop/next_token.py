"""What the supervised loop makes smaller for policies."""

from collections.abc import Sequence

import torch

from assay_training.algorithms.losses import next_token_cross_entropy
from assay_training.config.model import OptimizerConfig
from assay_training.data.sft_examples import SftExample
from assay_training.loop.step import MicroBatch, Total
from assay_training.models.batches import autocast
from assay_training.models.policy import Policy


class NextToken:
    """Cross-entropy of the target tokens, averaged over all of a batch's.

    Args:
        policy: what is trained.
        settings: compute dtype.
    """

    def __init__(self, policy: Policy, settings: OptimizerConfig) -> None:
        self._policy, self._settings = policy, settings

    def begin(self, batch: Sequence[SftExample], mine: Sequence[MicroBatch], total: Total) -> int:
        """The batch's target tokens: every token weighs the same, whatever micro-batch it is in."""
        return sum(example.targets for example in batch)

    def loss(self, part: Sequence[SftExample], shared: int) -> torch.Tensor:
        """The micro-batch's share of the batch's loss."""
        with autocast(self._policy.device, self._settings):
            logprobs = self._policy.logprobs(part)
        return next_token_cross_entropy(logprobs, torch.full_like(logprobs, 1 / shared))
