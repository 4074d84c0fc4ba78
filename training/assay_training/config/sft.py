"""The configuration of a supervised run of a policy: pretraining, SFT in one stage or several."""

from pydantic import Field, field_validator

from assay_training.config.base import Frozen, Name, RunConfig, Seed
from assay_training.config.data import Sources
from assay_training.config.model import Lora, OptimizerConfig


class Stage(Frozen):
    """One pass of training; stages follow each other on the same weights, each with an optimizer of its own.

    Attributes:
        name: The name of the stage in metrics.
        sources: The data sets, of dialogues or texts.
        optimizer: The optimizer and its schedule.
    """

    name: Name
    sources: Sources
    optimizer: OptimizerConfig


class SftConfig(RunConfig):
    """A run of `assay train sft`.

    Attributes:
        name: The name of the run; the run directory is `runs/NAME` unless `--out` says otherwise.
        max_length: The tokens of a dialogue or text; longer ones are cut on the right.
        lora: The adapter, which is merged in the end; null trains all weights.
        stages: One or more stages, in order, each on the weights that the one before it left.
        held_out: The share of the groups that no stage sees; the loss on them is reported.
        seed: The seed of everything random.
    """

    name: Name
    max_length: int = Field(gt=1)
    lora: Lora | None
    stages: list[Stage] = Field(min_length=1)
    held_out: float = Field(gt=0, lt=0.5)
    seed: Seed = 0

    @field_validator("stages")
    @classmethod
    def _named_apart(cls, stages: list[Stage]) -> list[Stage]:
        if len({stage.name for stage in stages}) < len(stages):
            raise ValueError("two stages have the same name")
        return stages
