"""Declare the configuration of a PPO run."""

from typing import Annotated

from pydantic import Field, model_validator

from assay_training.config.base import Frozen, Name, RunConfig, Seed
from assay_training.config.data import Sources
from assay_training.config.model import Adam, Lora
from assay_training.config.rollout import Reward, Sampled

Share = Annotated[float, Field(ge=0, le=1)]


class Rollout(Sampled):
    """The sampling of the completions of a PPO step.

    Attributes:
        completions: The number of completions of one step, each for a different prompt.
        importance_cap: The largest importance weight between engine and trainer probabilities; null does not correct
            ([Ionides]).
    """

    completions: int = Field(16, gt=0)
    importance_cap: float | None = Field(None, ge=1)


class Kl(Frozen):
    """The penalty on the KL divergence from the reference policy, with an adaptive coefficient ([Ziegler]).

    Attributes:
        coef: The initial coefficient of the penalty.
        target: The KL in nats per completion that the coefficient is adapted towards; null keeps it constant.
        horizon: The number of completions over which the coefficient is adapted.
    """

    coef: float = Field(ge=0)
    target: float | None = Field(None, gt=0)
    horizon: int = Field(10_000, gt=0)


class Ppo(Frozen):
    """The clipped objective of [PPO], with advantages by [GAE].

    Attributes:
        epochs: The number of passes over the completions of a step.
        mini_batch: The number of completions of one update.
        clip_range: The distance from 1 at which the ratio of new to old probabilities is clipped.
        value_clip_range: The distance from the old values at which new values are clipped.
        value_coef: The weight of the value loss.
        gamma: The discount per token.
        gae_lambda: The λ of generalized advantage estimation.
        ratio_limit: The mean probability ratio above which an update is skipped and counted.
    """

    epochs: int = Field(4, gt=0)
    mini_batch: int = Field(16, gt=0)
    clip_range: float = Field(0.2, gt=0, lt=1)
    value_clip_range: float = Field(0.2, gt=0)
    value_coef: float = Field(0.1, ge=0)
    # The reward is given at the end of a completion, and should not depend on its length.
    gamma: Share = 1.0
    gae_lambda: Share = 0.95
    ratio_limit: float = Field(10.0, gt=1)


class PpoConfig(RunConfig):
    """A run of `assay train ppo`; `base` is both the policy to start from and the reference policy.

    Attributes:
        name: The name of the run; the run directory is `runs/NAME` unless `--out` is given.
        sources: The data sets that prompts are taken from.
        lora: The adapter to train; the base without it is the reference policy.
        reward: The reward of a completion.
        rollout: The sampling of completions.
        kl: The penalty on the KL divergence from the reference policy.
        ppo: The clipped objective.
        optimizer: The optimizer of the adapter and the value head; the learning rate is constant.
        steps: The number of rollouts, each followed by `ppo.epochs` passes.
        seed: The seed of all random draws.
    """

    name: Name
    sources: Sources
    lora: Lora
    reward: Reward
    rollout: Rollout
    kl: Kl
    ppo: Ppo
    optimizer: Adam
    steps: int = Field(gt=0)
    seed: Seed = 0

    @model_validator(mode="after")
    def _check_mini_batch(self) -> "PpoConfig":
        if self.ppo.mini_batch > self.rollout.completions:
            raise ValueError("ppo.mini_batch must be at most rollout.completions")
        return self
