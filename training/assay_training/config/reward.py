"""Declare the configuration of a reward-model run, which is checked before anything is loaded."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from assay_service.scoring.manifest import REASONING_TAGS, EosPolicy, Reasoning, ScorePosition, Tag, Unfinished
from assay_training.config.base import Name, RunConfig, Seed
from assay_training.config.data import Sources, Split
from assay_training.config.mixture import Keep, Portion, Repeat, Sample, Step
from assay_training.config.model import Lora, OptimizerConfig
from assay_training.config.objective import Objective


def check_trainable(position: ScorePosition) -> ScorePosition:
    """Return a score position if heads can be trained on it.

    Raises:
        ValueError: it is read behind a layer that a checkpoint does not hold, or there are no labels for it.
    """
    if position == "steps":
        raise ValueError("process reward models are served, but not trained: no data format here has labels of steps")
    if position == "completion_tokens":
        raise ValueError("it is read by `head.likelihood` of a service, which is not trained; use last_token")
    if position in ("pooler", "mean_pooler"):
        # A pooler is a trained layer of its own, which a checkpoint of an adapter and a head does not hold.
        raise ValueError("heads are trained on hidden states, not on BERT's pooler; use first_token or mean")
    return position


_TESTS_ONLY = {"test_folds", "frozen_head"}  # keys of `split`
LowerLayers = Literal["compute", "store", "keep"]


def check_adapted_layers(lower_layers: LowerLayers, lora: Lora | None) -> None:
    """Check that a run which stores the hidden states below its adapter has layers below it.

    Raises:
        ValueError: it has none; the message names the keys.
    """
    if lower_layers == "compute":
        return
    if lora is None:
        raise ValueError(f"lower_layers: {lower_layers} needs an adapter; lora: null trains all layers")
    if lora.layers is None or 0 in lora.layers:
        raise ValueError(
            f"lower_layers: {lower_layers} needs layers without an adapter below the others; name the upper layers in "
            "lora.layers, without 0"
        )


def describe_training(config: RunConfig) -> dict[str, Any]:
    """Return the keys of a run with one head or several that decide what is trained, as JSON.

    The base and the template are not among them, as their contents decide, not their paths.
    """
    keys = config.model_dump(mode="json", exclude={"template": True, "base": True, "split": _TESTS_ONLY})
    # Not recorded if it has no effect, so that runs of versions without this key resume.
    stored = keys.pop("lower_layers") != "compute"
    return keys | ({"lower_layers": "store"} if stored else {})


class RewardConfig(RunConfig):
    """A run of `assay train reward`.

    Of the score positions, `mean` averages all tokens and `completion` the completion's; poolers cannot be trained.
    The texts of golden rows are stored in the checkpoint, also those that are taken from the data.

    Attributes:
        name: The name of the run and of the signal; the run directory is `runs/NAME` unless `--out` is given.
        objective: The training objective: `preference` (Bradley-Terry on rankings) or `absolute` (labels in 0..1).
        sources: The data sets to train on and to test on.
        mixture: The steps, in order, that turn the records of a training part into its training set.
        max_length: The largest number of tokens of prompt and completion; longer prompts are truncated on the left.
        score_position: The tokens that the head reads. Decoders: `last_token`, `eos`, `last_non_pad_id`; encoders:
            `first_token`, `mean`, `completion`.
        eos: The source of the end-of-turn token: the chat template prints it, or it is appended.
        unfinished: The treatment of completions that were cut off, by the served model.
        reasoning: The treatment of reasoning in completions, in training and by the served model: rendered, removed
            first, or refused.
        reasoning_tags: The tags that open and close reasoning, where it is not kept.
        lora: The adapter; null trains all weights.
        lower_layers: The layers below `lora.layers`: `compute` in every step, `store` their hidden states once, or
            `keep` that file afterwards.
        optimizer: The optimizer and its learning-rate schedule.
        split: The division of the data into training and test parts.
        seed: The seed of all random draws.
        golden: Pairs of prompt and completion, stored with their logits and checked at every load; null takes the
            first rows.
    """

    name: Name
    objective: Objective
    sources: Sources
    mixture: list[Step] = Field([])
    max_length: int = Field(gt=0)
    score_position: Annotated[ScorePosition, AfterValidator(check_trainable)]
    eos: EosPolicy
    unfinished: Unfinished
    reasoning: Reasoning = "keep"
    reasoning_tags: tuple[Tag, Tag] = REASONING_TAGS
    lora: Lora | None
    lower_layers: LowerLayers = "compute"
    optimizer: OptimizerConfig
    split: Split
    seed: Seed = 0
    golden: Annotated[list[tuple[str, str]], Field(min_length=1)] | None = None

    @property
    def rules(self) -> dict[str, Any]:
        """Return the rules by which the run and the service turn text into token ids, by name."""
        names = ("max_length", "score_position", "eos", "unfinished", "reasoning", "reasoning_tags")
        return {name: getattr(self, name) for name in names}

    @model_validator(mode="after")
    def _check_steps(self) -> "RewardConfig":
        check_adapted_layers(self.lower_layers, self.lora)
        if self.split.folds is not None and not self.objective.served:
            raise ValueError("split: folds need a model that can be served; this objective's output is not a logit")
        # Rankings have no label, by which the other steps choose records.
        for step in self.mixture:
            if self.objective.kind == "preference" and not isinstance(step, Repeat | Portion | Keep | Sample):
                raise ValueError(f"mixture: {step.step} is for labelled items; this run trains on rankings")
        return self
