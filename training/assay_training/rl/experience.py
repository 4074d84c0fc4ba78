"""A rollout to what PPO learns from it: rewards by token, advantages, returns; and its numbers. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from assay_training.algorithms import ppo
from assay_training.config.ppo import PpoConfig
from assay_training.config.rollout import Reward
from assay_training.data.sft_examples import SftExample
from assay_training.models.actor import OldPolicyOutputs
from assay_training.rollout.collect import ScoredCompletion

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Experience:
    """A completion with what an update must know of each of its tokens; all fp32 `[n]`.

    Attributes:
        example: prompt and completion; the completion's tokens are its targets.
        logprobs: of the policy that sampled it, computed where it is trained.
        values: of the value head as it was then.
        advantages: whitened over the rollout.
        returns: what values should have been.
        weights: of the policy's loss: what corrects for the engine.
    """

    example: SftExample
    logprobs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    weights: torch.Tensor

    @property
    def tokens(self) -> int:
        """Of prompt and completion."""
        return self.example.tokens


def example_of(sample: ScoredCompletion) -> SftExample:
    """A sample as it is looked at and learned from."""
    return SftExample.of(sample.completion.prompt, sample.completion.ids)


def scores_of(samples: Sequence[ScoredCompletion], reward: Reward) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The samples' scores, whether they ended by themselves, and what they are worth then; each `[B]`."""
    scores = torch.tensor([sample.score.value for sample in samples], dtype=torch.float32)
    finished = torch.tensor([sample.completion.finish_reason == "stop" for sample in samples])
    shaped = ppo.shaped_scores(scores, finished, clip=reward.clip, missing_eos_penalty=reward.missing_eos_penalty)
    return scores, finished, shaped


def experiences(
    samples: Sequence[ScoredCompletion],
    outputs: Sequence[OldPolicyOutputs],
    references: Sequence[torch.Tensor],
    kl_coef: float,
    config: PpoConfig,
) -> tuple[list[Experience], Metrics]:
    """Of a whole rollout.

    Args:
        samples: completions with scores.
        outputs: of the policy that sampled them, one each.
        references: log-probabilities of the reference, one each.
        kl_coef: of this step.
        config: the run's.

    Returns:
        One each; and the numbers of the rollout, without those that it has none of.
    """
    logprobs, values, reference = (
        _padded(of) for of in ([o.logprobs for o in outputs], [o.values for o in outputs], references)
    )
    mask = _padded([torch.ones_like(look.logprobs, dtype=torch.bool) for look in outputs])
    device = logprobs.device
    scores, finished, shaped = (of.to(device) for of in scores_of(samples, config.reward))
    rewards = ppo.token_rewards(shaped, logprobs, reference, mask, kl_coef)
    advantages = ppo.generalized_advantages(
        rewards, values, mask, gamma=config.ppo.gamma, gae_lambda=config.ppo.gae_lambda
    )
    returns = advantages + values
    whitened = ppo.whiten(advantages, mask, ppo.sums(advantages, mask))
    engine = _padded([torch.tensor(sample.completion.logprobs, device=device) for sample in samples])
    cap = config.rollout.importance_cap
    weights = torch.ones_like(logprobs) if cap is None else ppo.importance_weights(logprobs, engine, cap)
    columns = (logprobs, values, whitened, returns, weights)
    made = [
        Experience(example_of(sample), *(of[i, : len(sample.completion.ids)] for of in columns))
        for i, sample in enumerate(samples)
    ]
    entropies = torch.cat([look.entropies for look in outputs])
    kl = _per_completion(ppo.k1(logprobs, reference), mask)
    lengths = mask.sum(dim=1).float()
    found = {
        "score": float(scores.mean()),
        "score_std": float(scores.std(correction=0)),
        "shaped_score": float(shaped.mean()),
        "kl": kl,
        "kl_k3": _per_completion(ppo.k3(logprobs, reference), mask),
        "kl_reward": -kl_coef * kl,
        "kl_coef": kl_coef,
        "entropy": float(entropies.mean()),
        "explained_variance": _explained(values[mask], returns[mask]),
        "eos_rate": float(finished.float().mean()),
        "length": float(lengths.mean()),
        "score_length_correlation": correlation(scores, lengths),
        "logprob_mismatch": float((logprobs - engine).abs()[mask].mean()),
        "logprob_mismatch_max": float((logprobs - engine).abs()[mask].max()),
        "importance_ess": None if cap is None else _effective(weights[mask]),
        "importance_capped": None if cap is None else float((weights[mask] >= cap).float().mean()),
    }
    return made, {name: number for name, number in found.items() if number is not None}


def _padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return pad_sequence(list(rows), batch_first=True)


def _per_completion(values: torch.Tensor, mask: torch.Tensor) -> float:
    return float(torch.where(mask, values, 0.0).sum(dim=1).mean())


def _explained(values: torch.Tensor, returns: torch.Tensor) -> float | None:
    spread = float(returns.var(correction=0))
    return 1 - float((returns - values).var(correction=0)) / spread if spread else None


def correlation(x: torch.Tensor, y: torch.Tensor) -> float | None:
    """Pearson's; None where one of them does not vary, as lengths do not when every completion is cut off."""
    varied = bool(x.std(correction=0) and y.std(correction=0))
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1]) if varied else None


def _effective(weights: torch.Tensor) -> float:
    """The share of samples that is left, (Σw)² / (n Σw²)."""
    return float(weights.sum().square() / (len(weights) * weights.square().sum()))
