"""Declare the configuration of a supervised run of a policy: pretraining, and SFT in one stage or several."""

from pydantic import Field, field_validator

from assay_training.config.base import Frozen, Name, RunConfig, Seed
from assay_training.config.data import Sources
from assay_training.config.model import Lora, OptimizerConfig


class Stage(Frozen):
    """One stage of training; stages follow each other on the same weights, each with an optimizer of its own.

    Attributes:
        name: The name of the stage in metrics.
        sources: The data sets of dialogues or texts.
        optimizer: The optimizer and its learning-rate schedule.
    """

    name: Name
    sources: Sources
    optimizer: OptimizerConfig


class SftConfig(RunConfig):
    """A run of `assay train sft`.

    Attributes:
        name: The name of the run; the run directory is `runs/NAME` unless `--out` is given.
        max_length: The largest number of tokens of a dialogue or text; longer ones are truncated on the right.
        lora: The adapter, which is merged at the end; null trains all weights.
        stages: The stages, in order, each from the weights of the stage before it.
        held_out: The share of groups that no stage trains on; the loss on them is reported.
        seed: The seed of all random draws.
    """

    name: Name
    max_length: int = Field(gt=1)
    lora: Lora | None
    stages: list[Stage] = Field(min_length=1)
    held_out: float = Field(gt=0, lt=0.5)
    seed: Seed = 0

    @field_validator("stages")
    @classmethod
    def _check_names(cls, stages: list[Stage]) -> list[Stage]:
        if len({stage.name for stage in stages}) < len(stages):
            raise ValueError("two stages have the same name; metrics need one name per stage")
        return stages
