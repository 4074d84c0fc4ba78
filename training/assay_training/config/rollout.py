"""Declare how completions are sampled, and how a running service rewards them."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from assay_training.config.base import Frozen

# vLLM raises a smaller temperature to this one without an error; the trainer would then divide logits by another.
LEAST_TEMPERATURE = 0.01

Hash = Annotated[str, Field(pattern="^[0-9a-f]{8,64}$", description="a SHA-256, or the first eight digits or more")]


class ExpectedSignal(Frozen):
    """The identity that a signal behind the reward must have; keys that are not set are not checked.

    Attributes:
        kind: The kind of the signal.
        model: The base, as the service's configuration names it.
        revision: The commit of the base or the SHA-256 of its weights; at least the first eight digits.
        adapter_sha256: The SHA-256 of the adapter's weights, printed as the run starts; at least the first eight
            digits.
    """

    kind: Literal["preference", "absolute"] | None = None
    model: str | None = None
    revision: Hash | None = None
    adapter_sha256: Hash | None = None


class Expected(Frozen):
    """The identity that the scoring service must have; a run stops before its first step if it differs.

    Attributes:
        fingerprint: The hash of models, blend and libraries, printed as the run starts; at least the first eight
            digits.
        signals: The expected identity of each signal, by name.
    """

    fingerprint: Hash | None = None
    signals: dict[str, ExpectedSignal] = Field({})


def format_weights(weights: Mapping[str, float]) -> str:
    """Return a weighted sum as text, such as `0.75 helpful - 0.5 cost`."""
    terms = [f"{'-' if weight < 0 else '+'} {abs(weight):g} {name}" for name, weight in weights.items()]
    first, *others = terms
    return " ".join([first.removeprefix("+ ").replace("- ", "-", 1), *others])


class Reward(Frozen):
    """The reward of a completion, computed from the scores of a running service.

    A completion that could not be scored never gets a number in place of a score.

    Attributes:
        model: The served signal or blend; null if `weights` are given.
        weights: The weight of each signal in a blend of the run's own, negative for a cost; null with `model`.
        value: The part of a score that is the reward: the logit, or the probability of a single absolute signal.
        clip: The largest magnitude of a score, after blending; null does not clip.
        missing_eos_penalty: The penalty for a completion that was cut off, in logits, subtracted from its score.
        failed: The reaction to a completion that could not be scored: stop the run, or drop and count it.
        expect: The identity that the service must have; the run stops before it samples if that differs.
    """

    model: str | None = None
    weights: dict[str, float] | None = Field(None, min_length=1)
    value: Literal["logit", "probability"] = "logit"
    clip: float | None = Field(None, gt=0)
    missing_eos_penalty: float = Field(1.0, ge=0)
    failed: Literal["stop", "drop"] = "stop"
    expect: Expected = Expected()

    @model_validator(mode="after")
    def _check_rule(self) -> "Reward":
        if (self.model is None) == (self.weights is None):
            raise ValueError("set exactly one of model and weights")
        if self.value == "probability" and self.weights is not None:
            # Blended logits of several signals have no sigmoid that means a probability.
            raise ValueError("value: probability needs a single signal; set model instead of weights")
        return self


class Sampled(Frozen):
    """The sampling of completions.

    If the log-probabilities of engine and trainer differ by more than `max_logprob_mismatch` in the mean, the run
    stops. The engine then does not sample from the policy that is trained.

    Attributes:
        engine: The generation engine: vLLM, or transformers if vLLM is not installed.
        chunk_completions: The completions generated together; they are scored while the next ones are generated.
        max_prompt_tokens: The largest number of tokens of a prompt; longer prompts are dropped and counted.
        max_new_tokens: The largest number of tokens of a completion.
        temperature: The sampling temperature, at least 0.01; sampling is from the whole distribution.
        max_logprob_mismatch: The largest mean absolute difference of engine and trainer log-probabilities, in nats per
            token; above it, the run stops.
    """

    engine: Literal["vllm", "transformers"]
    chunk_completions: int = Field(16, gt=0)
    max_prompt_tokens: int = Field(1024, gt=0)
    max_new_tokens: int = Field(512, gt=0)
    temperature: float = Field(1.0, gt=0)
    max_logprob_mismatch: float = Field(0.1, gt=0)

    @field_validator("temperature")
    @classmethod
    def _check_temperature(cls, temperature: float) -> float:
        if temperature < LEAST_TEMPERATURE:
            raise ValueError(f"must be at least {LEAST_TEMPERATURE}, because vLLM raises smaller temperatures to it")
        return temperature

    @property
    def max_tokens(self) -> int:
        """Return the largest number of tokens of prompt and completion together."""
        return self.max_prompt_tokens + self.max_new_tokens
