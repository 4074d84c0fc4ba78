"""Compute the rewards, advantages and losses of PPO for language models; pure functions of tensors.

Legend:

    B       completions of a rollout
    T       tokens of its longest completion; shorter ones are padded on the right
    t       completion tokens of a micro-batch, end to end, without padding
    π       policy that is trained;  π_old: policy that sampled the completions, as the trainer computes it
    π_ref   reference policy: the base without its adapter
    π_engine  sampling policy, as the inference engine reports it
    r, V, A   reward, value and advantage of a token
    R       return: the target of the value head, R = A + V

`completion_mask` is bool `[B, T]`, True at completion tokens. Every row has at least one True, and all of them come
first. Where the mask is False, inputs may hold any finite number, and outputs hold 0. Log-probabilities and KL are in
nats; probabilities are those at the sampling temperature.

Sources: losses [PPO], advantages [GAE], estimators k1 to k3 [KL], KL penalty in the reward and its adaptive
coefficient [Ziegler], truncated importance weights [Ionides]. See also [CRS] equations 2.5.3 and 2.11.
"""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor


def estimate_k1(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the estimate k1 = log π − log π_ref of KL(π ‖ π_ref) at each sampled token: unbiased, sometimes negative.

    Args:
        logprobs: log-probabilities of the sampled tokens under the policy, fp32 of any shape.
        ref_logprobs: log-probabilities of the same tokens under the reference, same shape.
    """
    return logprobs - ref_logprobs


def estimate_k2(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the estimate k2 = (log π − log π_ref)² / 2: never negative, biased, low variance; shapes as k1."""
    return (logprobs - ref_logprobs).square() / 2


def estimate_k3(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the estimate k3 = π_ref/π − 1 − log(π_ref/π): unbiased and never negative; shapes as k1."""
    log_ratio = ref_logprobs - logprobs
    # expm1 keeps precision where the two policies nearly agree, which is the usual case.
    return torch.expm1(log_ratio) - log_ratio


def shape_scores(
    scores: Float[Tensor, " B"], finished: Bool[Tensor, " B"], *, clip: float | None, missing_eos_penalty: float
) -> Float[Tensor, " B"]:
    """Return the reward of each completion: its clipped score, less a penalty where it has no EOS token.

    `shaped_b = clip(score_b, ±clip) − missing_eos_penalty · [not finished_b]`

    Args:
        scores: scores of the reward service, fp32 `[B]`.
        finished: True where the policy ended the completion by EOS, bool `[B]`.
        clip: largest magnitude of a score, or None; [CRS] uses 4.
        missing_eos_penalty: penalty of a truncated completion. It is subtracted, instead of replacing the score, so
            that better truncated completions still get more.

    Returns:
        Shaped scores, fp32 `[B]`.
    """
    shaped = scores if clip is None else scores.clamp(-clip, clip)
    return shaped - missing_eos_penalty * (~finished).to(scores.dtype)


def compute_token_rewards(
    scores: Float[Tensor, " B"],
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    kl_coef: float,
) -> Float[Tensor, "B T"]:
    """Return the reward of each token: the KL penalty everywhere, plus the score at the last token ([Ziegler]).

    `r_t = −kl_coef · (log π_old − log π_ref)_t + [t is last] · score`

    Args:
        scores: shaped scores, fp32 `[B]`.
        logprobs: log-probabilities of the sampled tokens under π_old, fp32 `[B, T]`.
        ref_logprobs: log-probabilities of the same tokens under π_ref, fp32 `[B, T]`.
        completion_mask: bool `[B, T]`.
        kl_coef: coefficient of the KL penalty.

    Returns:
        Rewards, fp32 `[B, T]`.
    """
    rewards = torch.where(completion_mask, -kl_coef * estimate_k1(logprobs, ref_logprobs), 0.0)
    # Completion tokens come first in their row, so their number gives the place of the last one.
    last = completion_mask.sum(dim=1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def compute_gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    gamma: float,
    gae_lambda: float,
) -> Float[Tensor, "B T"]:
    """Return the generalized advantage estimates of [GAE].

    `A_t = Σ_l (γλ)^l · δ_{t+l}` with `δ_t = r_t + γ · V_{t+1} − V_t`; V is 0 after the last token.

    Args:
        rewards: rewards r, fp32 `[B, T]`.
        values: values V, fp32 `[B, T]`; V_t is predicted from the tokens before t.
        completion_mask: bool `[B, T]`.
        gamma: discount γ per token, 0..1.
        gae_lambda: λ in 0..1: at 1 advantages are unbiased, at 0 they look one step ahead.

    Returns:
        Advantages, fp32 `[B, T]`.
    """
    # Padding may hold any number, and the last token's successor must have the value 0.
    masked_values = torch.where(completion_mask, values, 0.0)
    next_values = torch.cat([masked_values[:, 1:], torch.zeros_like(masked_values[:, :1])], dim=1)
    deltas = torch.where(completion_mask, rewards + gamma * next_values - masked_values, 0.0)
    advantages, running = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * gae_lambda * running
        advantages[:, t] = running
    return torch.where(completion_mask, advantages, 0.0)


def compute_masked_sums(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float64[Tensor, "3"]:
    """Return the number of the masked values, their sum, and the sum of their squares.

    Unlike mean and variance, these can be added up over processes.

    Args:
        values: numbers of any shape.
        mask: True where a value counts, bool of the same shape.

    Returns:
        The three sums, float64 `[3]`.
    """
    counted = values[mask].double()
    return torch.stack([torch.ones_like(counted).sum(), counted.sum(), counted.square().sum()])


def whiten(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], totals: Float64[Tensor, "3"]
) -> Float[Tensor, "*shape"]:
    """Return the masked values shifted and scaled to mean 0 and population variance 1.

    Args:
        values: numbers of any shape.
        mask: True where a value counts, bool of the same shape.
        totals: `compute_masked_sums` of everything that is whitened together, float64 `[3]`.

    Returns:
        Whitened values of the same shape; 0 where the mask is False, and everywhere if all values are equal.
    """
    count, total, squares = totals.tolist()
    mean = total / count
    # Rounding can make the difference slightly negative where all values are equal.
    variance = max(squares / count - mean * mean, 0.0)
    # The epsilon makes equal values 0 instead of NaN.
    return torch.where(mask, (values - mean) * (variance + 1e-8) ** -0.5, 0.0)


def compute_policy_losses(
    logprobs: Float[Tensor, " t"], old_logprobs: Float[Tensor, " t"], advantages: Float[Tensor, " t"], clip_range: float
) -> Float[Tensor, " t"]:
    """Return the clipped surrogate loss of each token ([PPO] equation 7, negated).

    `L_t = −min(ρ_t · A_t, clip(ρ_t, 1 ± clip_range) · A_t)` with `ρ = π / π_old`

    Args:
        logprobs: log-probabilities under π, fp32 `[t]`.
        old_logprobs: log-probabilities under π_old, fp32 `[t]`.
        advantages: advantages A, fp32 `[t]`.
        clip_range: largest distance of ρ from 1 that is still rewarded.

    Returns:
        Losses, fp32 `[t]`.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range))


def compute_value_losses(
    values: Float[Tensor, " t"], old_values: Float[Tensor, " t"], returns: Float[Tensor, " t"], value_clip_range: float
) -> Float[Tensor, " t"]:
    """Return the clipped squared error of the value of each token.

    `L_t = ½ max((V_t − R_t)², (V_old,t + clip(V_t − V_old,t, ±value_clip_range) − R_t)²)`

    Args:
        values: values V of the trained value head, fp32 `[t]`.
        old_values: values V_old at sampling time, fp32 `[t]`.
        returns: returns R, fp32 `[t]`.
        value_clip_range: largest change of a value that is still rewarded.

    Returns:
        Losses, fp32 `[t]`.
    """
    clipped = old_values + (values - old_values).clamp(-value_clip_range, value_clip_range)
    return torch.maximum((values - returns).square(), (clipped - returns).square()) / 2


def compute_importance_weights(
    logprobs: Float[Tensor, "*shape"], engine_logprobs: Float[Tensor, "*shape"], cap: float
) -> Float[Tensor, "*shape"]:
    """Return the truncated importance weight `w_t = min(π_old / π_engine, cap)` of each token ([Ionides]).

    It corrects for the mismatch between the engine, which samples, and the trainer, which computes π_old.

    Args:
        logprobs: log-probabilities under π_old as the trainer computes them, fp32 `[t]` or `[B, T]`.
        engine_logprobs: log-probabilities of the same tokens as the engine reports them, same shape.
        cap: largest weight; it bounds the variance.

    Returns:
        Weights, fp32 of the same shape.
    """
    return torch.exp(logprobs - engine_logprobs).clamp(max=cap)


def exceeds_ratio_limit(ratio: float, limit: float) -> bool:
    """Return whether an update must be skipped: its mean ratio π/π_old exceeds the limit, or has overflowed."""
    return not ratio <= limit  # also True for NaN, unlike `ratio > limit`


def adapt_kl_coef(kl_coef: float, kl: float, completions: int, *, target: float, horizon: int) -> float:
    """Return the KL coefficient for the next step ([Ziegler] section 2.2).

    `kl_coef · (1 + clip(kl / target − 1, ±0.2) · completions / horizon)`

    Args:
        kl_coef: coefficient of this step.
        kl: KL(π_old ‖ π_ref) in nats per completion, the mean over the completions of this step.
        completions: number of completions of this step.
        target: KL that the coefficient steers to, in nats per completion.
        horizon: time constant of the adaptation, in completions.
    """
    return kl_coef * (1 + min(max(kl / target - 1, -0.2), 0.2) * completions / horizon)
