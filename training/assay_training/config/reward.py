"""The configuration of a reward-model run: one frozen object, read from YAML, checked before anything is loaded."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from assay_service.scoring.manifest import EosPolicy, ScorePosition, Unfinished
from assay_training.config.base import Name, RunConfig, Seed
from assay_training.config.data import Sources, Split
from assay_training.config.mixture import Keep, Portion, Repeat, Sample, Step
from assay_training.config.model import Lora, OptimizerConfig
from assay_training.config.objective import Objective


def _trainable(position: ScorePosition) -> ScorePosition:
    if position == "pooler":
        raise ValueError("heads are trained on hidden states, not on BERT's pooler; use first_token")
    return position


class RewardConfig(RunConfig):
    """A run of `assay train reward`.

    Attributes:
        name: The name of the run and of the signal; the run directory is `runs/NAME` unless `--out` says otherwise.
        objective: What is learned: `preference` (Bradley-Terry on rankings) or `absolute` (labels in 0..1).
        sources: The data sets.
        mixture: The steps from the records of a training part to what is trained on, in order.
        max_length: The tokens of prompt and completion together; longer prompts are cut from the left.
        score_position: Which tokens the head reads: `last_token`, `eos` and `last_non_pad_id` are for decoders;
            `first_token`, `mean` (of all tokens) and `completion` (the mean of the completion's) are for encoders.
            `pooler` cannot be trained.
        eos: Where the end of turn comes from: the chat template prints it, or it is appended.
        unfinished: What the served model does with a completion that was cut off.
        lora: The adapter; null trains all weights.
        optimizer: The optimizer and its schedule.
        split: Which part of the data is tested on.
        seed: The seed of everything random.
        golden: Pairs of a prompt and a completion whose texts and logits are stored in the checkpoint and checked
            whenever it is loaded; null takes the first rows of the data, which the checkpoint then holds.
    """

    name: Name
    objective: Objective
    sources: Sources
    mixture: list[Step] = Field([])
    max_length: int = Field(gt=0)
    score_position: Annotated[ScorePosition, AfterValidator(_trainable)]
    eos: EosPolicy
    unfinished: Unfinished
    lora: Lora | None
    optimizer: OptimizerConfig
    split: Split
    seed: Seed = 0
    golden: Annotated[list[tuple[str, str]], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _steps_fit(self) -> "RewardConfig":
        if self.split.folds is not None and not self.objective.served:
            raise ValueError("split: folds judge a model that is served, and this objective's output is no logit")
        for step in self.mixture:
            if self.objective.kind == "preference" and not isinstance(step, Repeat | Portion | Keep | Sample):
                raise ValueError(f"mixture: {step.step} is for labelled items, this run learns from rankings")
        return self
