"""Declare the steps of a mixture, which change the records of a training part before training."""

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from assay_training.config.base import Frozen

Share = Annotated[float, Field(gt=0, lt=1)]


class OverSample(Frozen):
    """The step that replaces low labelled items by twice as many draws from them (`over_s`, [CRS] section 5.3).

    Draws are with replacement; labels of at most 0.4 are low.
    """

    step: Literal["over_sample"]


class UnderSample(Frozen):
    """The step that keeps equally many mid labelled items of five equal label ranges (`under_s`, [CRS] section 5.3).

    Attributes:
        rows: The number of items with a label between 0.4 and 0.9 to keep; a multiple of five.
    """

    step: Literal["under_sample"]
    # Equally many from each of five ranges.
    rows: int = Field(gt=0, multiple_of=5)


class Augment(Frozen):
    """The step that adds a paraphrase of each low labelled item, scored by algorithm 1 ([CRS] section 5.3).

    Attributes:
        file: A file of JSON lines below `--data`, with `prompt`, `completion`, `paraphrase` and `similarity`.
    """

    step: Literal["augment"]
    file: PurePosixPath


class WeightLow(Frozen):
    """The step that weights low labelled items by a share of rows / low rows (`wgt_s`, [CRS] section 5.3).

    Attributes:
        share: The factor on the weight rows / low rows; [CRS] uses 0.5 and 0.75.
    """

    step: Literal["weight_low"]
    share: float = Field(gt=0, le=1)


class WeightExtremes(Frozen):
    """The step that weights low and high labelled items by a constant (`wgt_1_4`, [CRS] section 5.3).

    Attributes:
        weight: The weight of items with a label <= 0.4 or >= 0.9; [CRS] uses 1.4.
    """

    step: Literal["weight_extremes"]
    weight: float = Field(gt=0)


class Portion(Frozen):
    """The step that draws records of some sources uniformly until they are a share of the result ([Llama 2] mixes).

    Attributes:
        sources: The data sets or subsets to draw from; the others stay whole.
        share: Their share of the result; [Llama 2] uses 0.5 for helpfulness and 0.1 for safety.
    """

    step: Literal["portion"]
    sources: Annotated[list[str], Field(min_length=1)]
    share: Share


class Keep(Frozen):
    """The step that keeps only the records of some sources; the test data stay whole ([Llama 2] section 3.2.2).

    Attributes:
        sources: The data sets or subsets to keep.
    """

    step: Literal["keep"]
    sources: Annotated[list[str], Field(min_length=1)]


class Sample(Frozen):
    """The step that keeps a share of the groups, to measure accuracy against data size ([Llama 2] figure 6).

    The groups of a smaller share are among those of a larger share.

    Attributes:
        share: The share of the groups to keep.
    """

    step: Literal["sample"]
    share: Share


class Proportions(Frozen):
    """The step that keeps as many labelled items as possible at given shares of low and high labels.

    The other items have mid labels. [CRS] has the shares 0.11 and 0.20.

    Attributes:
        low: The share of labels <= 0.4 in the result.
        high: The share of labels >= 0.9 in the result.
    """

    step: Literal["proportions"]
    low: Share
    high: Share

    @property
    def mid(self) -> float:
        """Return the share of labels between low and high."""
        return 1 - self.low - self.high

    @model_validator(mode="after")
    def _check_mid(self) -> "Proportions":
        if self.mid <= 0:
            raise ValueError("the sum of low and high must be below 1, to leave a share for the labels in between")
        return self


class Mismatched(Frozen):
    """The step that adds prompts with the completion of another prompt of the same source, labelled 0.

    Attributes:
        share: The share of labelled items whose prompt is added with another completion.
    """

    step: Literal["mismatched"]
    share: float = Field(gt=0, le=1)


class Repeat(Frozen):
    """The step that repeats records within an epoch.

    The number of a subset goes before that of its data set. With 1.5, half of the groups occur twice, the others once.

    Attributes:
        times: The copies per epoch of each data set or subset (`hh_rlhf/harmless-base`); 1.5 doubles half of the
            groups.
    """

    step: Literal["repeat"]
    times: Annotated[dict[str, Annotated[float, Field(ge=1)]], Field(min_length=1)]


Step = Annotated[
    OverSample
    | UnderSample
    | Augment
    | WeightLow
    | WeightExtremes
    | Portion
    | Keep
    | Sample
    | Proportions
    | Mismatched
    | Repeat,
    Field(discriminator="step"),
]
