"""Define the settings of one signal and of one blend."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from assay_service import preset, preset_keys
from assay_service.errors import StartError
from assay_service.scoring.blend import Blend, LengthPenalty, Standardise
from assay_service.scoring.compute import Compute
from assay_service.scoring.head_rule import HeadRule, OutputKey
from assay_service.scoring.manifest import (
    ControlTokenPolicy,
    DroppedContent,
    EosPolicy,
    Kind,
    Reasoning,
    ScorePosition,
    StepRules,
    Tag,
    TokenTypes,
    Unfinished,
)
from assay_service.scoring.quantization import Method
from assay_service.scoring.reading import Aggregate, Likelihood
from assay_service.validation import DEVICE_PATTERN, NAME_PATTERN, check_one_or_several, check_output, check_tokens

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
LARGEST_WEIGHT = 1e6
Weight = Annotated[float, Field(ge=-LARGEST_WEIGHT, le=LARGEST_WEIGHT, allow_inf_nan=False)]


class Frozen(BaseModel):
    """Base of all settings: unknown keys are refused, and no value changes after the start."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HeadSettings(Frozen):
    """How a head is read that does not say so itself; exactly one key is declared.

    Attributes:
        tokens: rows of a language model's output layer that are the head. One token is given, whose logit is the
            reward, or two, for the logit of the first minus that of the second. Each is a text that is one token, or an
            id.
        gate: text that the template prints between prompt and completion; a gating network reads its first token.
        likelihood: the logit is the log-probability of the completion under the language model: the sum over its
            tokens, or the mean.
    """

    tokens: Annotated[tuple[str | int, ...] | None, BeforeValidator(check_tokens)] = None
    gate: str | None = Field(None, min_length=1)
    likelihood: Likelihood | None = None

    @model_validator(mode="after")
    def _check_one(self) -> "HeadSettings":
        if sum(key is not None for key in (self.tokens, self.gate, self.likelihood)) != 1:
            raise ValueError("declare one of `tokens`, `likelihood`, and `gate` for a head with a gating network")
        return self

    def build_rule(self, outputs: tuple[int, ...]) -> HeadRule:
        """Return what is read of the head, of which `outputs` are declared beside these settings."""
        return HeadRule(outputs, self.tokens or (), self.likelihood)


class SignalSettings(Frozen):
    """The settings of one served head.

    A key that is None comes from the checkpoint's manifest or its other files; without a value the start is refused.

    Attributes:
        preset: name of a preset, which declares the keys of a known checkpoint; keys beside it take their place.
        kind: meaning of the logit: a Bradley-Terry reward, or a quality in 0..1 after the sigmoid.
        base: a path, `package:NAME`, or a hub id; None takes the base that the adapter's `adapter_config.json` names.
        revision: commit, tag or branch of a hub id.
        adapter: path of a LoRA adapter with its head; None serves the base's own head. A list is applied in order:
            each adapter was trained on the base with those before it, and the last one has the head.
        adapter_base: the base's name in the adapter's files, where that is another name for the same weights.
        quantization: format of the base's quantized weights, as its `config.json` names it; they are read as plain
            weights of `dtype`. None refuses quantized weights.
        gguf_file: name of the GGUF file in the base's directory that has the weights; None takes safetensors files.
        dtype: dtype of the base's weights in memory; None takes the checkpoint's own.
        compute: numbers in which the base computes. `auto` is the dtype where the device has instructions for it, else
            float32 over the same weights. None takes the manifest's, else `auto`.
        engine: engine of the forward pass: Assay's own, or vLLM for models too large for one device.
        tensor_parallel_size: number of devices over which vLLM splits every layer.
        device: device of the base, by torch's name; None takes CUDA where there is a CUDA device.
        max_length: most tokens of prompt and completion together.
        template: path of a Jinja chat template; None takes the checkpoint's own.
        template_name: name of one of the checkpoint's chat templates; None takes the one called "default".
        bos: `add` puts the tokenizer's BOS in front of the template's text, as tokenizers do by themselves.
        score_position: the tokens that the head reads.
        head: tokens of a language model's output layer that are the head, the likelihood under that model, or the place
            that a gating network reads. None takes the checkpoint's own head as it is.
        output: output of a head with several: its number, its name, or two numbers whose difference is the logit.
        pad_token_id: the id that `score_position: last_non_pad_id` skips.
        token_types: rule for the types (segments) of tokens, for bases that have several.
        eos: origin of the end of turn: the chat template, or an appended EOS token.
        mean: mean of the logits, for blends that standardise.
        std: standard deviation of the logits, for blends that standardise.
        moments: `config` takes mean and std from the keys `mean` and `std` of `config.json`, as OpenRLHF writes them.
        code: `ignore` serves a base whose `config.json` asks for remote code, by transformers' own model without it.
        unfinished: rule for completions that a length limit cut off: scored, or an error.
        dropped_content: rule for an item of which the template drops a part: an error, or scored and reported.
        control_tokens: rule for a control token in a message: an error, or read as plain characters.
        reasoning: rule for the reasoning of a completion: rendered as it is, removed before, or an error.
        reasoning_tags: the two tags that enclose reasoning; None takes `<think>` and `</think>`.
        steps: rules by which steps are read, for `score_position: steps`.
        aggregate: rule that makes one logit of those of the steps.
        neutral_prompt: text of a user's turn that is rendered in place of the messages before the completion; None
            renders those messages.
    """

    preset: str | None = None
    kind: Kind | None = None
    base: str | None = None
    revision: str | None = None
    adapter: Annotated[str | list[str] | None, BeforeValidator(check_one_or_several)] = None
    adapter_base: str | None = None
    quantization: Method | None = None
    gguf_file: str | None = Field(None, pattern=r"\.gguf$")
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    compute: Compute | None = None
    engine: Literal["assay", "vllm"] = "assay"
    tensor_parallel_size: int = Field(1, gt=0)
    device: str | None = Field(None, pattern=DEVICE_PATTERN)
    max_length: int | None = Field(None, gt=0)
    template: str | None = None
    template_name: str | None = None
    bos: Literal["add"] | None = None
    score_position: ScorePosition | None = None
    head: HeadSettings | None = None
    output: Annotated[OutputKey | None, BeforeValidator(check_output)] = None
    pad_token_id: int | None = Field(None, ge=0)
    token_types: TokenTypes | None = None
    eos: EosPolicy | None = None
    mean: float | None = Field(None, allow_inf_nan=False)
    std: float | None = Field(None, gt=0, allow_inf_nan=False)
    moments: Literal["config"] | None = None
    code: Literal["ignore"] | None = None
    unfinished: Unfinished | None = None
    dropped_content: DroppedContent = "error"
    control_tokens: ControlTokenPolicy = "error"
    reasoning: Reasoning | None = None
    reasoning_tags: tuple[Tag, Tag] | None = None
    steps: StepRules | None = None
    aggregate: Aggregate | None = None
    neutral_prompt: str | None = Field(None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, raw: object) -> object:
        if not isinstance(raw, dict) or not isinstance(name := raw.get("preset"), str):
            return raw
        try:
            return preset_keys.merge(name, preset.read(name), raw)
        except StartError as error:
            raise ValueError(error.message) from error

    @model_validator(mode="after")
    def _some_weights(self) -> "SignalSettings":
        if self.base is None and self.adapter is None:
            raise ValueError("base: declare the directory or hub id of the model, or an `adapter` that names its base")
        return self

    @model_validator(mode="after")
    def _check_head(self) -> "SignalSettings":
        if self.head is not None and self.head.gate is None and self.output is not None:
            raise ValueError("output: is for a head of its own; remove it beside `head.tokens` and `head.likelihood`")
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> "SignalSettings":
        if self.quantization is not None and self.gguf_file is not None:
            raise ValueError("quantization: is for safetensors files; remove it beside `gguf_file`")
        return self

    @model_validator(mode="after")
    def _check_engine(self) -> "SignalSettings":
        if self.engine == "assay" and self.tensor_parallel_size != 1:
            raise ValueError("tensor_parallel_size: is only for `engine: vllm`; remove it or declare that")
        not_vllm = ("adapter", "quantization", "gguf_file", "compute", "device", "head", "output")
        if self.engine == "vllm" and (wrong := [key for key in not_vllm if getattr(self, key) is not None]):
            raise ValueError(f"{wrong[0]}: is not for `engine: vllm`, which serves whole models; remove one of the two")
        return self


def check_some_weight(weights: Mapping[str, float]) -> None:
    """Refuse weights that are all zero, since every text would have the same score.

    Raises:
        ValueError: all weights are zero.
    """
    if not any(weights.values()):
        raise ValueError("at least one weight must not be zero")


class LengthPenaltySettings(Frozen):
    """The settings of a blend's penalty on long completions.

    Attributes:
        per_token: logits that each token of the completion subtracts from the score. The end of turn counts, as it does
            in `completion_tokens`.
        signal: the signal of the blend whose tokens are counted; None where all signals of the blend count the same.
    """

    per_token: float = Field(gt=0, le=LARGEST_WEIGHT, allow_inf_nan=False)
    signal: Name | None = None


class BlendSettings(Frozen):
    """The settings of a blend: a named weighted sum of signals.

    Attributes:
        weights: weights of the logits by name of the signal; finite, and not all zero. A negative weight makes the
            signal a cost.
        standardise: rule for scaling logits first: `none`, or by the mean and std of their signals (`manifest`).
        length_penalty: penalty on long completions, which is not standardised; None for no penalty.
        description: a sentence for users, which `/v1/models` shows; it changes no score.
    """

    weights: dict[Name, Weight] = Field(min_length=1)
    standardise: Standardise = "none"
    length_penalty: LengthPenaltySettings | None = None
    description: str | None = None

    @model_validator(mode="after")
    def _check_rule(self) -> "BlendSettings":
        check_some_weight(self.weights)
        signal = None if self.length_penalty is None else self.length_penalty.signal
        if signal is not None and signal not in self.weights:
            raise ValueError(f"length_penalty.signal: {signal!r} has no weight in this blend; name one that has")
        return self

    def build_blend(self, name: str) -> Blend:
        """Return the rule that these settings declare, under its served name."""
        penalty = self.length_penalty
        # Without a declared signal all count the same, so that any of them does; sorted, so that their order in the
        # file does not matter.
        length = None if penalty is None else LengthPenalty(penalty.per_token, penalty.signal or min(self.weights))
        return Blend(name, dict(self.weights), self.standardise, length)
