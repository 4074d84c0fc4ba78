"""The configuration of a PPO run."""

from typing import Annotated

from pydantic import Field, model_validator

from assay_training.config.base import Frozen, Name, RunConfig, Seed
from assay_training.config.data import Sources
from assay_training.config.model import Adam, Lora
from assay_training.config.rollout import Reward, Sampled

Share = Annotated[float, Field(ge=0, le=1)]


class Rollout(Sampled):
    """The same, for a step of PPO.

    Attributes:
        completions: The completions of one step, each of a prompt of its own.
        importance_cap: The largest weight that corrects for the gap of engine and trainer; null does not correct.
    """

    completions: int = Field(16, gt=0)
    importance_cap: float | None = Field(None, ge=1)


class Kl(Frozen):
    """The penalty for going away from the reference.

    Attributes:
        coef: The coefficient of the penalty at the start.
        target: The nats per completion that the coefficient is adapted towards; null keeps it.
        horizon: The completions over which it is adapted.
    """

    coef: float = Field(ge=0)
    target: float | None = Field(None, gt=0)
    horizon: int = Field(10_000, gt=0)


class Ppo(Frozen):
    """The clipped objective.

    Attributes:
        epochs: The passes over the completions of a step.
        mini_batch: The completions of one update.
        clip_range: How far the ratio of new to old probabilities may be from 1.
        value_clip_range: How far values may be from the old ones.
        value_coef: The weight of the values' loss.
        gamma: The discount per token.
        gae_lambda: The λ of generalised advantage estimation.
        ratio_limit: The mean ratio above which an update is skipped and counted.
    """

    epochs: int = Field(4, gt=0)
    mini_batch: int = Field(16, gt=0)
    clip_range: float = Field(0.2, gt=0, lt=1)
    value_clip_range: float = Field(0.2, gt=0)
    value_coef: float = Field(0.1, ge=0)
    gamma: Share = 1.0
    gae_lambda: Share = 0.95
    ratio_limit: float = Field(10.0, gt=1)


class PpoConfig(RunConfig):
    """A run of `assay train ppo`; `base` is the policy to start from, which is the reference as well.

    Attributes:
        name: The name of the run; the run directory is `runs/NAME` unless `--out` says otherwise.
        sources: The data sets that prompts are taken from.
        lora: The adapter that is trained; without it the policy is the reference.
        reward: What a completion is worth.
        rollout: How completions are sampled.
        kl: The penalty for going away from the reference.
        ppo: The clipped objective.
        optimizer: The optimizer of the adapter and the value head; the learning rate is constant.
        steps: The rollouts, each followed by `ppo.epochs` passes.
        seed: The seed of everything random.
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
    def _batches_fit(self) -> "PpoConfig":
        if self.ppo.mini_batch > self.rollout.completions:
            raise ValueError("ppo.mini_batch is more than rollout.completions")
        return self
