"""Compute the supervised objective of policies: the cross-entropy of target tokens."""

from collections.abc import Sequence

import torch

from assay_training.algorithms.losses import compute_next_token_cross_entropy
from assay_training.config.model import OptimizerConfig
from assay_training.data.sft_examples import SftExample
from assay_training.loop.step import MicroBatch, Total
from assay_training.models.batches import autocast
from assay_training.models.policy import Policy


class NextToken:
    """The cross-entropy of the target tokens, averaged over all target tokens of a batch.

    Args:
        policy: policy that is trained.
        settings: settings that name the compute dtype.
    """

    def __init__(self, policy: Policy, settings: OptimizerConfig) -> None:
        self._policy, self._settings = policy, settings

    def begin(self, batch: Sequence[SftExample], mine: Sequence[MicroBatch], total: Total) -> int:
        """Return the number of target tokens in the batch, so that every token has the same weight."""
        return sum(example.targets for example in batch)

    def loss(self, part: Sequence[SftExample], shared: int) -> torch.Tensor:
        """Return the micro-batch's share of the batch's loss, fp32 scalar."""
        with autocast(self._policy.device, self._settings):
            logprobs = self._policy.logprobs(part)
        return compute_next_token_cross_entropy(logprobs, torch.full_like(logprobs, 1 / shared))
