"""What a run learns from: its sources, and how they are split."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

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
    "preferences",
    "rankings",
    "labels",
    "dialogues",
    "text",
    "prompts",
]

# The fields of our own formats, under whose names `fields` puts others.
OWN_FIELDS: Mapping[str, tuple[str, ...]] = {
    "preferences": (
        "prompt", "chosen", "rejected", "system", "gap", "margin", "score_chosen", "score_rejected", "group",
    ),
    "rankings": ("prompt", "completions", "ranks", "group"),
    "labels": ("prompt", "completion", "label", "group"),
    "dialogues": ("messages", "group"),
    "text": ("text",),
    "prompts": ("prompt",),
}  # fmt: skip
_LISTS = ("chosen", "rejected", "completions")  # which can be put together from several fields

Language = Annotated[str, Field(pattern="^[A-Za-z-]{2,8}$")]
Unit = Annotated[float, Field(ge=-1, le=1)]


SOURCE_NAME = r"^[A-Za-z0-9_.-]{1,64}$"


def _renamed(format_: Any) -> Any:  # noqa: ANN401 - what YAML holds
    if format_ == "pairs":
        raise ValueError("'pairs' is called 'preferences' now, and reads the same rows; write format: preferences")
    return format_


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
        fields: of our own formats, which field of a row is read as which: `{prompt: question, rejected: [bad1, bad2]}`
            puts two fields together as a list, and `{margin: null}` leaves one out.
        largest_gap: of `preferences`, the margin or difference of scores that counts as a gap of 1: 9 for scores of 1
            to 10.
    """

    name: Annotated[str, Field(pattern=SOURCE_NAME)]
    format: Annotated[Format, BeforeValidator(_renamed)]
    hub: str | None = None
    hub_config: str | None = None
    hub_dir: str | None = None
    revision: Annotated[str, AfterValidator(_commit)] | None = None
    split: str = "train"
    languages: tuple[Language, ...] = ("en",)
    labels: dict[str, Unit] = Field({"quality": 1.0})
    fields: dict[str, str | list[str] | None] = Field({})
    largest_gap: float | None = Field(None, gt=0)

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

    @model_validator(mode="after")
    def _fields_fit(self) -> "Source":
        if self.largest_gap is not None and self.format != "preferences":
            raise ValueError(f"largest_gap is for format preferences, not {self.format}")
        if self.fields and self.format not in OWN_FIELDS:
            raise ValueError(f"fields is for {', '.join(OWN_FIELDS)}; the names in {self.format} are fixed")
        for name, origin in self.fields.items():
            if origin is not None and name not in OWN_FIELDS[self.format]:
                raise ValueError(f"fields: {name} is no field of {self.format}: {', '.join(OWN_FIELDS[self.format])}")
            if isinstance(origin, list) and name not in _LISTS:
                raise ValueError(f"fields: {name} comes from one field; only {', '.join(_LISTS)} are lists")
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
