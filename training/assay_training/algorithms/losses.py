"""Compute the losses of reward models and of supervised policies; pure functions of tensors.

Legend (all tensors are fp32 vectors):

    p   pairs in a batch; each has a better and a worse completion
    n   labelled completions in a batch
    t   target tokens in a batch
    w   weights; each is a share of the whole batch, so that Σ w = 1 gives a weighted mean
    σ   the logistic function

Every loss is a weighted *sum*, so the losses of micro-batches, and of processes, add up to the loss of the batch.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

EXCESS = 0.02  # weight of the part of a raw prediction outside 0..1 ([CRS] section 5.3)


def compute_bradley_terry(
    margins: Float[Tensor, " p"], target_margins: Float[Tensor, " p"], weights: Float[Tensor, " p"]
) -> Float[Tensor, ""]:
    """Return the weighted negative log-likelihood of the Bradley-Terry model, with target margins.

    `L = −Σ_p w_p · log σ(margins_p − target_margins_p)` ([Bradley-Terry])

    - With weights `1 / (pairs of the prompt · prompts)` and no target margins it is [CRS] equation 2.12: the mean over
      all C(K, 2) pairs of a prompt, then over prompts.
    - With labelled target margins it is [Margin] equation 3.
    - With those of `compute_batch_mean_margins` it is [Margin] equations 4 to 7.

    Args:
        margins: logit of the better completion minus logit of the worse, fp32 `[p]`.
        target_margins: values that the margins should exceed, fp32 `[p]`; zeros for none.
        weights: shares of the batch, fp32 `[p]`.

    Returns:
        The loss, fp32 scalar.
    """
    return -(weights * logsigmoid(margins - target_margins)).sum()


def compute_batch_mean_margins(margins: Float[Tensor, " p"], mean: Float[Tensor, ""]) -> Float[Tensor, " p"]:
    """Return the adaptive target margins with threshold of [Margin] equations 6 and 7.

    The target is the batch's mean margin μ for pairs below it, and 0 for the others. The paper leaves open whether μ is
    detached. It must be: otherwise the gradient of equation 4 sums to exactly zero over the batch, and no step
    raises the mean.

    Args:
        margins: logit of the better completion minus logit of the worse, fp32 `[p]`.
        mean: μ of the whole batch ([Margin] equation 5), fp32 scalar without gradient.

    Returns:
        Target margins, fp32 `[p]`, without gradient.

    Raises:
        ValueError: `mean` carries a gradient.
    """
    if mean.requires_grad:
        raise ValueError("the mean margin carries a gradient, which cancels the gradient of the loss; detach it")
    # The comparison selects pairs and is not differentiable, so it needs no gradient either.
    return torch.where(margins.detach() < mean, mean, torch.zeros_like(margins))


def compute_squared_logits(
    better: Float[Tensor, " p"], worse: Float[Tensor, " p"], weights: Float[Tensor, " p"]
) -> Float[Tensor, ""]:
    """Return the L2 penalty on logits of [Open-Assistant]: `L = Σ_p w_p · ½ (better_p² + worse_p²)`.

    Args:
        better: logits of the better completions, fp32 `[p]`.
        worse: logits of the worse completions, fp32 `[p]`.
        weights: shares of the batch, fp32 `[p]`.

    Returns:
        The penalty, fp32 scalar.
    """
    return (weights * 0.5 * (better.square() + worse.square())).sum()


def compute_squared_sums(
    better: Float[Tensor, " p"], worse: Float[Tensor, " p"], weights: Float[Tensor, " p"]
) -> Float[Tensor, ""]:
    """Return the centring penalty `L = Σ_p w_p · (better_p + worse_p)²` ([Eisenstein]).

    The Bradley-Terry loss depends on differences of logits alone. This penalty fixes their level at zero.

    Args:
        better: logits of the better completions, fp32 `[p]`.
        worse: logits of the worse completions, fp32 `[p]`.
        weights: shares of the batch, fp32 `[p]`.

    Returns:
        The penalty, fp32 scalar.
    """
    return (weights * (better + worse).square()).sum()


def compute_soft_label_cross_entropy(
    logits: Float[Tensor, " n"], labels: Float[Tensor, " n"], weights: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Return the binary cross-entropy of σ(logit) against soft labels (`logistic` in [CRS] section 5.3).

    `L = −Σ_n w_n · (labels_n · log σ(logits_n) + (1 − labels_n) · log(1 − σ(logits_n)))`

    Args:
        logits: outputs of the head, fp32 `[n]`.
        labels: quality labels in 0..1, fp32 `[n]`.
        weights: shares of the batch, fp32 `[n]`; `1 / n` each gives the mean.

    Returns:
        The loss, fp32 scalar.
    """
    return (weights * binary_cross_entropy_with_logits(logits, labels, reduction="none")).sum()


def compute_sigmoid_squared_error(
    logits: Float[Tensor, " n"], labels: Float[Tensor, " n"], weights: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Return the squared error of σ(logit): `L = Σ_n w_n · (σ(logits_n) − labels_n)²` (`sig+mse` in [CRS] section 5.3).

    Arguments and shapes are those of `soft_label_cross_entropy`.
    """
    return (weights * (torch.sigmoid(logits) - labels).square()).sum()


def compute_raw_squared_error(
    predictions: Float[Tensor, " n"], labels: Float[Tensor, " n"], weights: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Return the squared error of the raw output, plus 0.02 times its excess over 0..1 (`mse` in [CRS] section 5.3).

    `L = Σ_n w_n · ((predictions_n − labels_n)² + 0.02 · excess_n)`, where `excess_n` is the distance of the prediction
    from the interval 0..1.

    The head's output is the quality itself, not a logit. Shapes are those of `soft_label_cross_entropy`.
    """
    # Two one-sided distances: at most one of them is positive.
    excess = (-predictions).clamp_min(0) + (predictions - 1).clamp_min(0)
    return (weights * ((predictions - labels).square() + EXCESS * excess)).sum()


def compute_next_token_cross_entropy(logprobs: Float[Tensor, " t"], weights: Float[Tensor, " t"]) -> Float[Tensor, ""]:
    """Return the cross-entropy of the target tokens: `L = −Σ_t w_t · logprobs_t`.

    Args:
        logprobs: log-probabilities of the target tokens, fp32 `[t]`, in nats.
        weights: shares of the batch, fp32 `[t]`; `1 / t` each gives the mean per token.

    Returns:
        The loss, fp32 scalar.
    """
    return -(weights * logprobs).sum()
