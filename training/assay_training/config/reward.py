"""The configuration of a reward-model run: one frozen object, read from YAML, checked before anything is loaded."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from assay_service.scoring.manifest import EosPolicy, ScorePosition, Unfinished
from assay_training.config.base import Name, RunConfig, Seed
from assay_training.config.data import Sources, Split
from assay_training.config.mixture import Keep, Portion, Repeat, Sample, Step
from assay_training.config.model import Lora, Optimiser
from assay_training.config.objective import Objective


def _trainable(position: ScorePosition) -> ScorePosition:
    if position == "pooler":
        raise ValueError("heads are trained on hidden states, not on BERT's pooler; use first_token")
    return position


class RewardConfig(RunConfig):
    """A run of `assay train reward`.

    Attributes:
        name: of the signal.
        objective: preference (Bradley-Terry on rankings) or absolute (labels in 0..1).
        sources: what is learned from.
        mixture: steps from the records of a training part to what is trained on.
        max_length: tokens of prompt and completion together; longer prompts are cut from the left.
        score_position: which tokens the head reads.
        eos: where the end of turn comes from.
        unfinished: how the served model treats completions that were cut off.
        lora: the adapter; None trains all weights.
        optimiser: how it is trained.
        split: how it is judged.
        seed: of everything random.
        golden: (prompt, completion) pairs whose texts and logits are stored in the checkpoint, and checked whenever it
            is loaded. None for the first rows of the data, which the checkpoint then holds.
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
    optimiser: Optimiser
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
