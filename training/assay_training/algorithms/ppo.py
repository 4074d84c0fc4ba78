"""PPO: what the optimizer sees of a score, and what it makes smaller. Tensors in, tensors out.

Legend: B completions of up to T tokens, t tokens end to end. `completion_mask` is bool `[B, T]`: True where a token
counts; every completion has one at least, and its tokens come first in its row. Where False, an input may hold
anything that is finite, and an output holds 0.

Sources: Schulman et al. 2017 (PPO), 2016 (GAE), 2020 (http://joschu.net/blog/kl-approx.html: k1, k2, k3); Ziegler et
al. 2019 (reward, adaptive coefficient); [CRS] equations 2.5.3 and 2.11.
"""

import torch


def k1(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """KL of policy to reference by a token of the policy's: log π − log π_ref. Unbiased; negative at times."""
    return logprobs - ref_logprobs


def k2(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """The same as (log π − log π_ref)² / 2: never negative, biased, little variance."""
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """The same as π_ref/π − 1 − log(π_ref/π): unbiased and never negative."""
    apart = ref_logprobs - logprobs
    return torch.expm1(apart) - apart


def shaped_scores(
    scores: torch.Tensor, finished: torch.Tensor, *, clip: float | None, missing_eos_penalty: float
) -> torch.Tensor:
    """What a completion is worth, `[B]`: its score within ±`clip`, less a penalty where it was cut off.

    Args:
        scores: of the service, `[B]`.
        finished: bool `[B]`, True where generation ended by itself.
        clip: None for none; [CRS] has 4.
        missing_eos_penalty: subtracted, not put in the score's place, so that the score still counts.
    """
    worth = scores if clip is None else scores.clamp(-clip, clip)
    return worth - missing_eos_penalty * (~finished).to(scores.dtype)


def token_rewards(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    completion_mask: torch.Tensor,
    kl_coef: float,
) -> torch.Tensor:
    """−kl_coef (log π − log π_ref) at every token, and the score at the last; `[B, T]`.

    Args:
        scores: `[B]`, shaped.
        logprobs: of the sampled tokens, `[B, T]`, at the temperature of sampling.
        ref_logprobs: the same under the reference.
        completion_mask: `[B, T]`.
        kl_coef: of the penalty.
    """
    rewards = torch.where(completion_mask, -kl_coef * k1(logprobs, ref_logprobs), 0.0)
    last = completion_mask.sum(dim=1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, completion_mask: torch.Tensor, *, gamma: float, gae_lambda: float
) -> torch.Tensor:
    """GAE, `[B, T]`: Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t; after the last token V is 0.

    Args:
        rewards: `[B, T]`.
        values: `[B, T]`; at a token, of what comes before it.
        completion_mask: `[B, T]`.
        gamma: discount.
        gae_lambda: 1 for returns without bias, 0 for one step.
    """
    counted = torch.where(completion_mask, values, 0.0)
    following = torch.cat([counted[:, 1:], torch.zeros_like(counted[:, :1])], dim=1)
    deltas = torch.where(completion_mask, rewards + gamma * following - counted, 0.0)
    found, running = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * gae_lambda * running
        found[:, t] = running
    return torch.where(completion_mask, found, 0.0)


def sums(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How many count, their sum, and the sum of their squares; float64 `[3]`, which processes may add up."""
    counted = values[mask].double()
    return torch.stack([torch.ones_like(counted).sum(), counted.sum(), counted.square().sum()])


def whiten(values: torch.Tensor, mask: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
    """Values to mean 0 and variance 1 (of the population) over all that count; 0 where they do not, or do not vary.

    Args:
        values: of any shape.
        mask: bool, of the same.
        totals: `sums` of all that are whitened together.
    """
    count, total, squares = totals.tolist()
    mean = total / count
    variance = max(squares / count - mean * mean, 0.0)
    return torch.where(mask, (values - mean) * (variance + 1e-8) ** -0.5, 0.0)


def policy_losses(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, clip_range: float
) -> torch.Tensor:
    """−min(ρA, clip(ρ, 1 ± clip_range)A) with ρ = π/π_old, token by token; all `[t]`."""
    ratio = torch.exp(logprobs - old_logprobs)
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range))


def value_losses(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, value_clip_range: float
) -> torch.Tensor:
    """max((V − R)², (V_old + clip(V − V_old, ±value_clip_range) − R)²) / 2, token by token; all `[t]`."""
    clipped = old_values + (values - old_values).clamp(-value_clip_range, value_clip_range)
    return torch.maximum((values - returns).square(), (clipped - returns).square()) / 2


def importance_weights(logprobs: torch.Tensor, engine_logprobs: torch.Tensor, cap: float) -> torch.Tensor:
    """min(π/π_engine, cap) token by token: what corrects for an engine that samples a little otherwise than it is said.

    Args:
        logprobs: of the policy as it was at sampling, computed where it is trained, `[t]`.
        engine_logprobs: of the same tokens, as the engine sampled them, `[t]`.
        cap: truncates the weight, and so its variance (Ionides 2008).
    """
    return torch.exp(logprobs - engine_logprobs).clamp(max=cap)


def ratio_too_large(ratio: float, limit: float) -> bool:
    """Whether an update is skipped: its mean π/π_old is above the limit, or has overflowed."""
    return not ratio <= limit


def adapted_kl_coef(kl_coef: float, kl: float, completions: int, *, target: float, horizon: int) -> float:
    """The coefficient after a step: times 1 + clip(kl / target − 1, ±0.2) · completions / horizon.

    Args:
        kl_coef: before.
        kl: of policy to reference, summed over a completion's tokens, mean over completions.
        completions: of the step.
        target: what `kl` is steered to.
        horizon: completions over which.
    """
    return kl_coef * (1 + min(max(kl / target - 1, -0.2), 0.2) * completions / horizon)
