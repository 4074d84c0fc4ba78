"""The configuration of a PPO run."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from assay_training.config.base import Frozen, RunConfig
from assay_training.config.data import Sources
from assay_training.config.model import Adam, Lora

Share = Annotated[float, Field(ge=0, le=1)]


class Reward(Frozen):
    """What a completion is worth, as a running service says.

    Attributes:
        model: signal or blend; None where `weights` say.
        weights: signal -> weight, for a blend of the run's own.
        value: "logit", or "probability" of a single absolute signal (the thesis' bounded reward).
        clip: scores beyond ± this count as this much; after blending.
        missing_eos_penalty: subtracted from the score of a completion that was cut off.
        failed: what happens to a completion that the service could not score: the run stops, or the completion is left
            out and counted. It never gets a number.
    """

    model: str | None = None
    weights: dict[str, float] | None = None
    value: Literal["logit", "probability"] = "logit"
    clip: float | None = Field(None, gt=0)
    missing_eos_penalty: float = Field(1.0, ge=0)
    failed: Literal["stop", "drop"] = "stop"

    @model_validator(mode="after")
    def _one_rule(self) -> "Reward":
        if (self.model is None) == (self.weights is None):
            raise ValueError("either model or weights")
        if self.value == "probability" and self.weights is not None:
            raise ValueError("value: a probability is of a single signal, not of weights")
        return self


class Rollout(Frozen):
    """How completions are sampled.

    Attributes:
        engine: "vllm", or "transformers" where that is absent.
        completions: of one step, each of a prompt of its own.
        chunk_completions: generated together; while the next are, these are scored.
        max_prompt_tokens: longer prompts are left out.
        max_new_tokens: of a completion.
        temperature: of sampling, from the whole distribution; log-probabilities are of it everywhere.
        max_gap: mean absolute difference of the engine's log-probabilities and the trainer's, in nats, at which the
            run stops: the engine does not sample from the policy then.
        importance_cap: truncates the weight that corrects for that difference; None for no correction.
    """

    engine: Literal["vllm", "transformers"]
    completions: int = Field(16, gt=0)
    chunk_completions: int = Field(16, gt=0)
    max_prompt_tokens: int = Field(1024, gt=0)
    max_new_tokens: int = Field(512, gt=0)
    temperature: float = Field(1.0, gt=0)
    max_gap: float = Field(0.1, gt=0)
    importance_cap: float | None = Field(None, ge=1)


class Kl(Frozen):
    """The penalty for going away from the reference.

    Attributes:
        coef: at the start.
        target: nats per completion that `coef` is adapted towards; None keeps it.
        horizon: completions over which it is adapted.
    """

    coef: float = Field(ge=0)
    target: float | None = Field(None, gt=0)
    horizon: int = Field(10_000, gt=0)


class Ppo(Frozen):
    """The clipped objective.

    Attributes:
        epochs: passes over the completions of a step.
        mini_batch: completions of one update.
        clip_range: of the ratio of new to old probabilities.
        value_clip_range: of values around old ones.
        value_coef: weight of the values' loss.
        gamma: discount.
        gae_lambda: of the advantages.
        ratio_limit: an update whose mean ratio is larger is skipped and counted.
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
        name: of the run.
        sources: of prompts.
        lora: the adapter that is trained; without it the policy is the reference.
        reward: what a completion is worth.
        rollout: how completions are sampled.
        kl: the penalty.
        ppo: the objective.
        optimiser: of the adapter and the value head; the learning rate is constant.
        steps: rollouts, each followed by `ppo.epochs` passes.
        seed: of everything random.
    """

    name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    sources: Sources
    lora: Lora
    reward: Reward
    rollout: Rollout
    kl: Kl
    ppo: Ppo
    optimiser: Adam
    steps: int = Field(gt=0)
    seed: int = 0
