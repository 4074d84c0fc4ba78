"""How completions are sampled, and what they are worth."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from assay_training.config.base import Frozen

LEAST_TEMPERATURE = 0.01  # vLLM samples at this where less is asked for


Hash = Annotated[str, Field(pattern="^[0-9a-f]{8,64}$", description="a SHA-256, or the first eight digits or more")]


class ExpectedSignal(Frozen):
    """What a signal behind the reward must be; what is not named may be anything.

    Attributes:
        kind: The kind of the signal.
        model: The base, as the service's configuration names it.
        revision: The commit of the base, or the SHA-256 of its weights; the first eight digits or more.
        adapter_sha256: The SHA-256 of the adapter's weights, as the run's first lines print it; the first eight digits
            or more.
    """

    kind: Literal["preference", "absolute"] | None = None
    model: str | None = None
    revision: Hash | None = None
    adapter_sha256: Hash | None = None


class Expected(Frozen):
    """What the service must score by; a run stops before its first step where it does not.

    Attributes:
        fingerprint: The hash of models, blend and libraries, as the run's first lines print it; the first eight digits
            or more.
        signals: What each signal must be, by its name.
    """

    fingerprint: Hash | None = None
    signals: dict[str, ExpectedSignal] = Field({})


class Reward(Frozen):
    """What a completion is worth, as a running service says.

    Attributes:
        model: The served signal or blend; null where `weights` are given.
        weights: The weight of each signal, for a blend of the run's own.
        value: What of a score is the reward: its logit, or the probability of a single absolute signal.
        clip: The largest magnitude of a score, after blending; null keeps scores as they are.
        missing_eos_penalty: What is subtracted from the score of a completion that was cut off, in logits.
        failed: What happens to a completion that the service could not score: the run stops, or the completion is left
            out and counted. It never gets a number.
        expect: What the service must score by; otherwise the run stops before it samples.
    """

    model: str | None = None
    weights: dict[str, float] | None = Field(None, min_length=1)
    value: Literal["logit", "probability"] = "logit"
    clip: float | None = Field(None, gt=0)
    missing_eos_penalty: float = Field(1.0, ge=0)
    failed: Literal["stop", "drop"] = "stop"
    expect: Expected = Expected()

    @model_validator(mode="after")
    def _one_rule(self) -> "Reward":
        if (self.model is None) == (self.weights is None):
            raise ValueError("either model or weights")
        if self.value == "probability" and self.weights is not None:
            raise ValueError("value: a probability is of a single signal, not of weights")
        return self


class Sampled(Frozen):
    """How completions are sampled.

    Attributes:
        engine: What generates: vLLM, or transformers where that is not installed.
        chunk_completions: The completions that are generated together; while the next are, these are scored.
        max_prompt_tokens: The tokens of a prompt; longer ones are left out and counted.
        max_new_tokens: The tokens of a completion, at most.
        temperature: The temperature of sampling, from the whole distribution; 0.01 at least.
        max_logprob_mismatch: The mean absolute difference of the log-probabilities of engine and trainer, in nats
            per token, above which the run stops: the engine does not sample from the policy then.
    """

    engine: Literal["vllm", "transformers"]
    chunk_completions: int = Field(16, gt=0)
    max_prompt_tokens: int = Field(1024, gt=0)
    max_new_tokens: int = Field(512, gt=0)
    temperature: float = Field(1.0, gt=0)
    max_logprob_mismatch: float = Field(0.1, gt=0)

    @field_validator("temperature")
    @classmethod
    def _sampled_at(cls, temperature: float) -> float:
        if temperature < LEAST_TEMPERATURE:
            raise ValueError(f"vLLM samples at {LEAST_TEMPERATURE} where less is asked for; ask for no less")
        return temperature

    @property
    def max_tokens(self) -> int:
        """Of prompt and completion."""
        return self.max_prompt_tokens + self.max_new_tokens
