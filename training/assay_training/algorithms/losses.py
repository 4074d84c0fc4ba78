"""Losses of reward models: tensors in, tensor out.

Legend: `n` logits in a batch, `p` pairs.
"""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


def bradley_terry(
    logits: torch.Tensor, better: torch.Tensor, worse: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Negative log-likelihood of the Bradley-Terry model over weighted pairs.

    `-Σ_p weights_p · log σ(logits[better_p] - logits[worse_p])`. With weights `1 / (pairs of the prompt · prompts)` it
    is the thesis' (2.12) without its constant: all C(K, 2) pairs averaged per prompt, then over prompts.

    Args:
        logits: fp32 `[n]`.
        better: int64 `[p]`, indices of the preferred completions.
        worse: int64 `[p]`, indices of the others.
        weights: fp32 `[p]`.

    Returns:
        fp32 scalar.
    """
    return -(weights * logsigmoid(logits[better] - logits[worse])).sum()


def soft_label_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy against labels in 0..1 (the thesis' `logistic` task, seeds §5).

    Args:
        logits: fp32 `[n]`.
        labels: fp32 `[n]` in 0..1.
        weights: fp32 `[n]`; `1 / n` each gives the mean.

    Returns:
        fp32 scalar.
    """
    return (weights * binary_cross_entropy_with_logits(logits, labels, reduction="none")).sum()
