"""Turn a scored rollout into what PPO learns from: per-token rewards, advantages, returns and weights; no I/O.

Symbols and masks are those of `algorithms.ppo`: `B` completions, `T` tokens of the longest, `n` tokens of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
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
    """A completion with everything that an update needs for each of its tokens; all tensors are fp32 `[n]`.

    Attributes:
        example: token ids of prompt and completion; the completion's tokens are the targets.
        logprobs: log π_old, log-probabilities at sampling time as the trainer computes them, in nats.
        values: V_old, outputs of the value head at sampling time.
        advantages: A, generalized advantage estimates, whitened over the rollout.
        returns: R, targets of the value head.
        weights: truncated importance weights π_old / π_engine of the policy loss; ones if `importance_cap` is null.
    """

    example: SftExample
    logprobs: Float[Tensor, " n"]
    values: Float[Tensor, " n"]
    advantages: Float[Tensor, " n"]
    returns: Float[Tensor, " n"]
    weights: Float[Tensor, " n"]

    @property
    def tokens(self) -> int:
        """Return the number of tokens of prompt and completion, which a forward pass takes."""
        return self.example.tokens


def build_example(sample: ScoredCompletion) -> SftExample:
    """Return the token ids of a sample, with the completion's tokens as targets."""
    return SftExample.of(sample.completion.prompt, sample.completion.ids)


def shape_sample_scores(
    samples: Sequence[ScoredCompletion], reward: Reward
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"], Float[Tensor, " B"]]:
    """Return the scores of samples, whether each completion ended by EOS, and the shaped scores.

    Args:
        samples: the B scored completions.
        reward: configuration of clipping and of the penalty for a missing EOS.

    Returns:
        Scores fp32 `[B]`, finished bool `[B]`, and shaped scores fp32 `[B]`, all on the CPU.
    """
    scores = torch.tensor([sample.score.value for sample in samples], dtype=torch.float32)
    finished = torch.tensor([sample.completion.finish_reason == "stop" for sample in samples])
    shaped = ppo.shape_scores(scores, finished, clip=reward.clip, missing_eos_penalty=reward.missing_eos_penalty)
    return scores, finished, shaped


def build_experiences(
    samples: Sequence[ScoredCompletion],
    outputs: Sequence[OldPolicyOutputs],
    references: Sequence[Float[Tensor, " _"]],
    kl_coef: float,
    config: PpoConfig,
) -> tuple[list[Experience], Metrics]:
    """Return the experience of every completion of a rollout, and the metrics of the rollout.

    1. `r_t = −kl_coef · (log π_old − log π_ref)_t`, plus the shaped score at the last token.
    2. `A = GAE(r, V_old)` and `R = A + V_old`.
    3. A is whitened over all tokens of the rollout, after R has been computed from it.
    4. `w_t = min(π_old / π_engine, importance_cap)`.

    Args:
        samples: scored completions of the rollout, B of them.
        outputs: log π_old, V_old and entropies of each completion, fp32 `[n]` each.
        references: log π_ref of each completion's tokens, fp32 `[n]`, in nats.
        kl_coef: coefficient of the KL penalty at this step.
        config: configuration of the run.

    Returns:
        The experiences in the order of `samples`, and metrics by name. A metric that is undefined for the rollout is
        absent, such as a correlation with lengths that are all equal.
    """
    # Padded, since whitening and the metrics are over all tokens of the rollout at once.
    rollout = _pad_rollout(samples, outputs, references)
    scores, finished, shaped = (
        column.to(rollout.logprobs.device) for column in shape_sample_scores(samples, config.reward)
    )
    mask = rollout.mask
    rewards = ppo.compute_token_rewards(shaped, rollout.logprobs, rollout.ref_logprobs, mask, kl_coef)
    advantages = ppo.compute_gae(
        rewards, rollout.values, mask, gamma=config.ppo.gamma, gae_lambda=config.ppo.gae_lambda
    )
    # Returns are on the scale of rewards, so they use the advantages before whitening.
    returns = advantages + rollout.values
    whitened = ppo.whiten(advantages, mask, ppo.compute_masked_sums(advantages, mask))
    cap = config.rollout.importance_cap
    weights = _compute_weights(rollout, cap)
    experiences = _cut_experiences(samples, (rollout.logprobs, rollout.values, whitened, returns, weights))
    metrics = {
        **_measure_scores(scores, shaped, finished, mask.sum(dim=1).float()),
        **_measure_kl(rollout, kl_coef),
        "entropy": float(torch.cat([output.entropies for output in outputs]).mean()),
        "explained_variance": _compute_explained_variance(rollout.values[mask], returns[mask]),
        **({} if cap is None else _measure_weights(weights[mask], cap)),
    }
    return experiences, {name: number for name, number in metrics.items() if number is not None}


@dataclass(frozen=True, slots=True)
class _Rollout:
    """The log-probabilities and values of a rollout's tokens.

    Attributes:
        logprobs: log π_old, fp32 `[B, T]`, zero at padding.
        values: V_old, fp32 `[B, T]`.
        ref_logprobs: log π_ref, fp32 `[B, T]`.
        engine_logprobs: log π_engine, as the engine reported it while it sampled, fp32 `[B, T]`.
        mask: True at tokens of completions, False at padding, bool `[B, T]`.
    """

    logprobs: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"]
    ref_logprobs: Float[Tensor, "B T"]
    engine_logprobs: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]


def _pad_rollout(
    samples: Sequence[ScoredCompletion],
    outputs: Sequence[OldPolicyOutputs],
    references: Sequence[Float[Tensor, " _"]],
) -> _Rollout:
    device = outputs[0].logprobs.device
    return _Rollout(
        logprobs=_pad([output.logprobs for output in outputs]),
        values=_pad([output.values for output in outputs]),
        ref_logprobs=_pad(references),
        engine_logprobs=_pad([torch.tensor(sample.completion.logprobs, device=device) for sample in samples]),
        mask=_pad([torch.ones_like(output.logprobs, dtype=torch.bool) for output in outputs]),
    )


def _compute_weights(rollout: _Rollout, cap: float | None) -> Float[Tensor, "B T"]:
    """Return the importance weights of all tokens; ones if there is no cap, which turns them off."""
    if cap is None:
        return torch.ones_like(rollout.logprobs)
    return ppo.compute_importance_weights(rollout.logprobs, rollout.engine_logprobs, cap)


def _cut_experiences(samples: Sequence[ScoredCompletion], columns: Sequence[Float[Tensor, "B T"]]) -> list[Experience]:
    """Return the experiences without padding, so that they can be batched by tokens.

    Args:
        samples: scored completions, B of them.
        columns: the tensors of `Experience`, in the order of its fields.
    """
    return [
        Experience(build_example(sample), *(column[i, : len(sample.completion.ids)] for column in columns))
        for i, sample in enumerate(samples)
    ]


def _measure_weights(weights: Float[Tensor, " t"], cap: float) -> dict[str, float]:
    """Return how far the importance weights are from ones: their effective sample size, and the share at the cap."""
    return {
        "importance_ess": _compute_ess_share(weights),
        "importance_capped": float((weights >= cap).float().mean()),
    }


def _measure_scores(
    scores: Float[Tensor, " B"], shaped: Float[Tensor, " B"], finished: Bool[Tensor, " B"], lengths: Float[Tensor, " B"]
) -> dict[str, float | None]:
    """Return the metrics of scores and lengths; None where one is undefined."""
    return {
        "score": float(scores.mean()),
        # Population standard deviation, which is 0 and not NaN for a single completion.
        "score_std": float(scores.std(correction=0)),
        "shaped_score": float(shaped.mean()),
        "eos_rate": float(finished.float().mean()),
        "length": float(lengths.mean()),
        "score_length_correlation": compute_correlation(scores, lengths),
    }


def _measure_kl(rollout: _Rollout, kl_coef: float) -> dict[str, float]:
    """Return the distances of the policy to the reference, and to the engine that sampled for it."""
    mask, ref_logprobs = rollout.mask, rollout.ref_logprobs
    kl = _average_per_completion(ppo.estimate_k1(rollout.logprobs, ref_logprobs), mask)
    # Measured in every rollout, whether or not importance weights are used: `EngineCheck` stops on it.
    mismatch = (rollout.logprobs - rollout.engine_logprobs).abs()[mask]
    return {
        "kl": kl,
        "kl_k3": _average_per_completion(ppo.estimate_k3(rollout.logprobs, ref_logprobs), mask),
        "kl_reward": -kl_coef * kl,
        "kl_coef": kl_coef,
        "logprob_mismatch": float(mismatch.mean()),
        "logprob_mismatch_max": float(mismatch.max()),
    }


def _pad(rows: Sequence[Shaped[Tensor, " _"]]) -> Shaped[Tensor, "B T"]:
    """Return rows `[n]` of different lengths as one tensor `[B, T]`, padded with zeros on the right."""
    return pad_sequence(list(rows), batch_first=True)


def _average_per_completion(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> float:
    """Return the sum over a completion's tokens, averaged over completions; both `[B, T]`."""
    return float(torch.where(mask, values, 0.0).sum(dim=1).mean())


def _compute_explained_variance(values: Float[Tensor, " t"], returns: Float[Tensor, " t"]) -> float | None:
    """Return 1 − Var(R − V) / Var(R) over all tokens; None where all returns are equal."""
    variance = float(returns.var(correction=0))
    return 1 - float((returns - values).var(correction=0)) / variance if variance else None


def compute_correlation(x: Float[Tensor, " B"], y: Float[Tensor, " B"]) -> float | None:
    """Return Pearson's correlation of two vectors, fp32 `[B]`.

    It is None where one of them is constant, as lengths are when every completion is truncated.
    """
    # A correlation with a constant is 0/0, and a NaN in the metrics would stop the run.
    varied = bool(x.std(correction=0) and y.std(correction=0))
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1]) if varied else None


def _compute_ess_share(weights: Float[Tensor, " t"]) -> float:
    """Return the effective sample size as a share of the samples, `(Σw)² / (n · Σw²)`."""
    return float(weights.sum().square() / (len(weights) * weights.square().sum()))
