"""Declare the data sources of a run, and their split into training and test parts."""

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

# The fields of Assay's own formats: the names to which the key `fields` of a source maps a row's own names.
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
_LISTS = ("chosen", "rejected", "completions")  # fields that a list of several row fields may fill

Language = Annotated[str, Field(pattern="^[A-Za-z-]{2,8}$")]
Unit = Annotated[float, Field(ge=-1, le=1)]


# No separators: the name is a folder below --data, and `/` separates it from a subset in results.
SOURCE_NAME = r"^[A-Za-z0-9_.-]{1,64}$"


def _refuse_old_name(format_: Any) -> Any:  # noqa: ANN401 - what YAML holds
    if format_ == "pairs":
        # The old name gets a message of its own, because configurations of older versions have it.
        raise ValueError("'pairs' is called 'preferences' now, and reads the same rows; write format: preferences")
    return format_


def _check_commit(revision: str) -> str:
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError("not a commit (40 hexadecimal digits); branches and tags are refused because they can move")
    return revision


class Source(Frozen):
    """A data set, in a folder below `--data` or on the hub.

    `fields` is for `preferences` and Assay's other own formats, and `largest_gap` for `preferences` alone.

    Attributes:
        name: The folder below `--data`, and the name of the source in results.
        format: The format of the rows.
        hub: The id of a data set on the hub, which is read instead of a folder.
        hub_config: The configuration of a hub data set that has several, such as `main` of `openai/gsm8k`.
        hub_dir: The folder of the hub data set to read (`harmless-base`), which names the subset; null reads all.
        revision: The commit of the hub data set, 40 digits; branches and tags are refused because they can move.
        split: The split of the hub data set.
        languages: The languages of message trees (`oasst`) to keep.
        labels: The weights of message labels (`oasst`) in the quality; the magnitudes of the weights sum to 1.
        fields: The row's own name of each field; a list combines several fields, and null drops the field.
        largest_gap: The margin or score difference that counts as a gap of 1; 9 for scores of 1 to 10.
    """

    name: Annotated[str, Field(pattern=SOURCE_NAME)]
    format: Annotated[Format, BeforeValidator(_refuse_old_name)]
    hub: str | None = None
    hub_config: str | None = None
    hub_dir: str | None = None
    revision: Annotated[str, AfterValidator(_check_commit)] | None = None
    split: str = "train"
    languages: tuple[Language, ...] = ("en",)
    labels: dict[str, Unit] = Field({"quality": 1.0})
    fields: dict[str, str | list[str] | None] = Field({})
    largest_gap: float | None = Field(None, gt=0)

    @field_validator("labels")
    @classmethod
    def _check_magnitudes(cls, labels: dict[str, float]) -> dict[str, float]:
        total = sum(abs(weight) for weight in labels.values())
        if abs(total - 1) > 1e-9:  # decimal weights such as 0.7 and 0.3 do not sum to 1 exactly in binary
            raise ValueError(f"the magnitudes of the weights must sum to 1, not {total}")
        return labels

    @model_validator(mode="after")
    def _check_revision(self) -> "Source":
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision must be set together")
        if self.hub is None and (self.hub_config or self.hub_dir) is not None:
            raise ValueError("hub_config and hub_dir are for data sets on the hub; set hub too")
        return self

    @model_validator(mode="after")
    def _check_fields(self) -> "Source":
        if self.largest_gap is not None and self.format != "preferences":
            raise ValueError(f"largest_gap is for format preferences, not {self.format}")
        if self.fields and self.format not in OWN_FIELDS:
            raise ValueError(f"fields is for {', '.join(OWN_FIELDS)}; the field names of {self.format} are fixed")
        for name, origin in self.fields.items():
            if origin is not None and name not in OWN_FIELDS[self.format]:
                known = ", ".join(OWN_FIELDS[self.format])
                raise ValueError(f"fields: {name} is not a field of {self.format}; its fields are {known}")
            if isinstance(origin, list) and name not in _LISTS:
                raise ValueError(f"fields: {name} must name one field; only {', '.join(_LISTS)} may be lists")
        return self


def _check_unique(sources: list[Source]) -> list[Source]:
    names = [source.name for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is listed twice; to repeat a source, use the mixture step repeat")
    return sources


Sources = Annotated[list[Source], Field(min_length=1), AfterValidator(_check_unique)]


class Split(Frozen):
    """The split of the data by group; a group is a question, a first human turn or a message tree.

    With folds, no number is reported on the held-out groups, and the final model is trained on all groups.

    Attributes:
        held_out: The share of groups held out: without folds they are tested; with folds they choose hyper-parameters.
        folds: The number of folds into which the other groups are divided; null trains a single model.
        test_folds: The number of folds to test, each by a model trained without it.
        frozen_head: The largest number of training records for the frozen-head baseline; null skips it.
    """

    held_out: float = Field(gt=0, lt=0.5)
    folds: int | None = Field(None, ge=2)
    test_folds: int | None = Field(None, ge=1)
    frozen_head: int | None = Field(None, ge=10)

    @model_validator(mode="after")
    def _check_folds(self) -> "Split":
        if self.folds is not None and self.frozen_head is not None:
            raise ValueError("frozen_head: with folds the head is fitted on all training records; remove it")
        if (self.folds is None) != (self.test_folds is None):
            raise ValueError("folds and test_folds must be set together")
        if self.folds is not None and self.test_folds is not None and self.test_folds > self.folds:
            raise ValueError(f"test_folds: {self.test_folds} is more than the {self.folds} folds")
        return self
