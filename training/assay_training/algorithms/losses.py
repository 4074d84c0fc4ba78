"""Losses of reward models: tensors in, tensor out.

Legend: `n` logits in a batch, `p` pairs. A weight is a share of the whole batch: sums over micro-batches, and over
processes, add up to the batch's loss.
"""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

EXCESS = 0.02  # weight of what a raw prediction exceeds 0..1 by ([CRS] section 5.3)


def bradley_terry(margins: torch.Tensor, target_margins: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of the Bradley-Terry model over weighted pairs, with target margins.

    `-Σ_p weights_p · log σ(margins_p - target_margins_p)`. With weights `1 / (pairs of the prompt · prompts)` and no
    target margins it is [CRS] equation 2.12: all C(K, 2) pairs averaged per prompt, then over prompts; with labelled
    ones [Margin] equation 3, and with `batch_mean_margins` equations 4 to 7.

    Args:
        margins: fp32 `[p]`, logit of the better completion minus logit of the worse.
        target_margins: fp32 `[p]`, what a margin should exceed; zeros for none.
        weights: fp32 `[p]`.

    Returns:
        fp32 scalar.
    """
    _check_shapes(margins, target_margins, weights)
    return -(weights * logsigmoid(margins - target_margins)).sum()


def batch_mean_margins(margins: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Return the adaptive target margins with threshold of [Margin] equations 6 and 7.

    The batch's mean margin μ for pairs below it, 0 for the others. The paper does not say whether μ is detached; it has
    to be: otherwise the gradient of (4) sums to exactly zero over the batch, so that no step raises the mean.

    Args:
        margins: fp32 `[p]`.
        mean: fp32 scalar, μ of the whole batch (5); must carry no gradient.

    Returns:
        fp32 `[p]`, without gradient.
    """
    if mean.requires_grad:
        raise ValueError("the mean margin carries a gradient, which would undo the loss's")
    return torch.where(margins.detach() < mean, mean, torch.zeros_like(margins))


def squared_logits(better: torch.Tensor, worse: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Open-Assistant's L2 on the logits themselves: `Σ_p weights_p · ½ (better_p² + worse_p²)`; all `[p]`."""
    _check_shapes(better, worse, weights)
    return (weights * 0.5 * (better.square() + worse.square())).sum()


def squared_sums(better: torch.Tensor, worse: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Centring, `Σ_p weights_p · (better_p + worse_p)²` (Eisenstein et al. 2023, arXiv:2312.09244); all `[p]`.

    Bradley-Terry leaves the level of the logits open; this puts it at zero.
    """
    _check_shapes(better, worse, weights)
    return (weights * (better + worse).square()).sum()


def soft_label_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of σ(logit) against labels in 0..1 (`logistic` in [CRS] section 5.3).

    Args:
        logits: fp32 `[n]`.
        labels: fp32 `[n]` in 0..1.
        weights: fp32 `[n]`; `1 / n` each gives the mean.

    Returns:
        fp32 scalar.
    """
    _check_shapes(logits, labels, weights)
    return (weights * binary_cross_entropy_with_logits(logits, labels, reduction="none")).sum()


def sigmoid_squared_error(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Squared error of σ(logit) (`sig+mse` in [CRS] section 5.3); shapes as in `soft_label_cross_entropy`."""
    _check_shapes(logits, labels, weights)
    return (weights * (torch.sigmoid(logits) - labels).square()).sum()


def raw_squared_error(predictions: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Squared error of the raw output, plus 0.02 times what it exceeds 0..1 by (`mse` in [CRS] section 5.3).

    Here the head's output is the quality itself and not a logit; shapes as in `soft_label_cross_entropy`.
    """
    _check_shapes(predictions, labels, weights)
    excess = (-predictions).clamp_min(0) + (predictions - 1).clamp_min(0)
    return (weights * ((predictions - labels).square() + EXCESS * excess)).sum()


def next_token_cross_entropy(logprobs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`-Σ weights · logprobs` over the target tokens, both fp32 `[t]`; weights of `1 / t` give the mean per token."""
    _check_shapes(logprobs, weights)
    return -(weights * logprobs).sum()


def _check_shapes(*tensors: torch.Tensor) -> None:
    """Equal vectors: `[p] - [p, 1]` would silently be a matrix."""
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1 or tensors[0].dim() != 1:
        raise ValueError(f"expected vectors of one length, got {sorted(shapes)}")
