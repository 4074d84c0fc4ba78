"""What a run learns from: its sources, and how they are split."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from assay_training.config.base import Frozen

Format = Literal[
    "hh",
    "feedbackqa",
    "arena_bench",
    "diasafety",
    "halueval",
    "qa_feedback",
    "oasst",
    "alpaca",
    "dolly",
    "gsm8k",
    "pairs",
    "rankings",
    "labels",
    "dialogues",
    "text",
    "prompts",
]

Language = Annotated[str, Field(pattern="^[A-Za-z-]{2,8}$")]
Unit = Annotated[float, Field(ge=-1, le=1)]


SOURCE_NAME = r"^[A-Za-z0-9_.-]{1,64}$"


def _commit(revision: str) -> str:
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError("not a commit (40 hexadecimal digits); what a branch or tag means may change")
    return revision


class Source(Frozen):
    """A data set.

    Attributes:
        name: its folder below the data directory, and the records' `source`.
        format: what its rows look like.
        hub: a data set on the hub to read instead of a folder.
        hub_config: which configuration of the hub's data set, where it has several (`main` of `openai/gsm8k`).
        hub_dir: the folder of the hub's data set that is read (`harmless-base` of `Anthropic/hh-rlhf`); it is the
            records' subset, as a file's name is in a folder. None for the whole set.
        revision: commit of the hub's data set; what a branch or tag means may change, and a run could not be repeated.
        split: of the hub's data set.
        languages: of message trees (`oasst`), which to keep.
        labels: of message trees, weights of the labels that make up the quality; magnitudes sum to 1.
    """

    name: Annotated[str, Field(pattern=SOURCE_NAME)]
    format: Format
    hub: str | None = None
    hub_config: str | None = None
    hub_dir: str | None = None
    revision: Annotated[str, AfterValidator(_commit)] | None = None
    split: str = "train"
    languages: tuple[Language, ...] = ("en",)
    labels: dict[str, Unit] = Field({"quality": 1.0})

    @field_validator("labels")
    @classmethod
    def _within_one(cls, labels: dict[str, float]) -> dict[str, float]:
        total = sum(abs(weight) for weight in labels.values())
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the magnitudes of the weights must sum to 1, not {total}")
        return labels

    @model_validator(mode="after")
    def _pinned(self) -> "Source":
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision belong together")
        if self.hub is None and (self.hub_config or self.hub_dir) is not None:
            raise ValueError("hub_config and hub_dir are of a set on the hub")
        return self


def _once(sources: list[Source]) -> list[Source]:
    names = [source.name for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is there twice; to repeat a source is a step of the mixture")
    return sources


Sources = Annotated[list[Source], Field(min_length=1), AfterValidator(_once)]


class Split(Frozen):
    """Who is tested on what; groups are questions, first human turns or message trees.

    Attributes:
        held_out: share of the groups that no training sees. Without folds they are what a run is tested on; with folds,
            what hyper-parameters were chosen on, and no number is reported on them.
        folds: every other group belongs to exactly one fold; None for a single model.
        test_folds: how many folds are tested, each by a model trained without it.
    """

    held_out: float = Field(gt=0, lt=0.5)
    folds: int | None = Field(None, ge=2)
    test_folds: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _tests_what_there_is(self) -> "Split":
        if (self.folds is None) != (self.test_folds is None):
            raise ValueError("folds and test_folds belong together")
        if self.folds is not None and self.test_folds is not None and self.test_folds > self.folds:
            raise ValueError(f"test_folds: {self.test_folds} of {self.folds} folds")
        return self
