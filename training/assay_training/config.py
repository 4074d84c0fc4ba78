"""The configuration of a reward-model run: one frozen object, read from YAML, checked before anything is loaded."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from assay_service.scoring.manifest import EosPolicy, GoldenRow, Kind, ScorePosition, Unfinished

Source = Literal["hh_rlhf", "feedbackqa", "diasafety"]


def _trainable(position: ScorePosition) -> ScorePosition:
    if position == "pooler":
        raise ValueError("heads are trained on hidden states, not on BERT's pooler; use first_token")
    return position


class ConfigError(ValueError):
    """The configuration is wrong; the message names file and key."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(_Frozen):
    """The adapter.

    Attributes:
        r: rank.
        alpha: scale; the update is multiplied by alpha / r.
        target_modules: names of the linears that get an adapter.
        layers: indices of the layers that get one; None means all. Layers below the lowest need no backward pass.
    """

    r: int = Field(gt=0)
    alpha: int = Field(gt=0)
    target_modules: list[str]
    layers: list[int] | None = None


class Optimiser(_Frozen):
    """AdamW with warm-up and a cosine to a tenth of the learning rate (Llama-2 recipe, seeds §12).

    Attributes:
        learning_rate: the peak.
        betas: of Adam.
        weight_decay: on all trained parameters.
        max_grad_norm: the gradient is clipped to this norm.
        batch_prompts: prompts (for labelled items: items) in one optimiser step.
        micro_batch_tokens: tokens in one forward; steps are split to fit, without changing the loss.
        epochs: passes over the training part.
        warmup_share: share of all steps, at least 5 steps.
        compute_dtype: what matrix products are computed in while training; weights stay fp32.
    """

    learning_rate: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    batch_prompts: int = Field(32, gt=0)
    micro_batch_tokens: int = Field(8192, gt=0)
    epochs: int = Field(1, gt=0)
    warmup_share: float = Field(0.03, ge=0, lt=1)
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"


class Split(_Frozen):
    """Who is tested on what; groups are questions or first human turns.

    Attributes:
        folds: every group outside the development part belongs to exactly one fold.
        test_folds: how many folds are tested, each by a model trained without it; 1 is a plain held-out part.
        dev_share: share of the groups that are in no fold; hyper-parameters are chosen on them.
    """

    folds: int = Field(5, ge=2)
    test_folds: int = Field(5, ge=1)
    dev_share: float = Field(0.1, gt=0, lt=0.5)

    @model_validator(mode="after")
    def _tests_what_there_is(self) -> "Split":
        if self.test_folds > self.folds:
            raise ValueError(f"test_folds: {self.test_folds} of {self.folds} folds")
        return self


class RewardConfig(_Frozen):
    """A run of `assay train reward`.

    Attributes:
        name: of the signal.
        kind: preference (Bradley-Terry on pairs) or absolute (cross-entropy on labels in 0..1).
        base: a path, or `package:NAME`.
        template: file with the Jinja chat template, relative to the configuration.
        sources: folders below the data directory.
        mismatched: share of labelled items that also occur with another item's completion, labelled 0.
        repeat: how often the examples of a source (`hh_rlhf`) or of a subset (`hh_rlhf/harmless-base`, which then goes
            before its source) occur in an epoch on average, where not once.
        max_length: tokens of prompt and completion together; longer prompts are cut from the left.
        score_position: which tokens the head reads.
        eos: where the end of turn comes from.
        unfinished: how the served model treats completions that were cut off.
        lora: the adapter.
        optimiser: how it is trained.
        split: how it is judged.
        seed: of everything random.
        golden: conversations whose logits are stored and checked at load; texts of our own, never data.
    """

    name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    kind: Kind
    base: str
    template: Path
    sources: list[Source] = Field(min_length=1)
    mismatched: float = Field(0.0, ge=0, le=1)
    repeat: dict[str, Annotated[float, Field(ge=1)]] = {}
    max_length: int = Field(gt=0)
    score_position: Annotated[ScorePosition, AfterValidator(_trainable)]
    eos: EosPolicy
    unfinished: Unfinished
    lora: Lora
    optimiser: Optimiser
    split: Split = Split()
    seed: int = 0
    golden: list[tuple[str, str]] = Field(min_length=1, description="(prompt, completion) pairs")

    def golden_row(self, prompt: str, completion: str, logit: float) -> GoldenRow:
        """A golden row of the manifest."""
        return GoldenRow(messages=(("user", prompt), ("assistant", completion)), logit=logit)


def read(path: Path) -> RewardConfig:
    """Reads a configuration; the template's path becomes absolute.

    Raises:
        ConfigError: naming the file and the key.
    """
    try:
        raw: Any = yaml.safe_load(path.read_text())
        config = RewardConfig.model_validate(raw)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    template = (path.parent / config.template).resolve()
    if not template.is_file():
        raise ConfigError(f"{path}: template: {template} does not exist")
    return config.model_copy(update={"template": template})
