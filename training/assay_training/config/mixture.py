"""The steps of a mixture: what happens to the records of a training part before it is trained on."""

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from assay_training.config.base import Frozen

Share = Annotated[float, Field(gt=0, lt=1)]


class OverSample(Frozen):
    """`over_s`: low labelled items are replaced by twice as many draws, with replacement ([CRS] section 5.3)."""

    step: Literal["over_sample"]


class UnderSample(Frozen):
    """`under_s`: of the mid labelled items, equally many from each of five equal label ranges ([CRS] section 5.3).

    Attributes:
        rows: How many items with a label between 0.4 and 0.9 stay; a multiple of five.
    """

    step: Literal["under_sample"]
    rows: int = Field(gt=0, multiple_of=5)


class Augment(Frozen):
    """`augment`: a paraphrase of each low labelled item is added, with the score of Algorithm 1 ([CRS] section 5.3).

    Attributes:
        file: JSON lines below `--data`, with `prompt`, `completion`, `paraphrase` and `similarity`.
    """

    step: Literal["augment"]
    file: PurePosixPath


class WeightLow(Frozen):
    """`wgt_s`: low labelled items weigh rows / low rows, times a share ([CRS] section 5.3).

    Attributes:
        share: What the weight rows / low rows is multiplied by; [CRS] has 0.5 and 0.75.
    """

    step: Literal["weight_low"]
    share: float = Field(gt=0, le=1)


class WeightExtremes(Frozen):
    """`wgt_1_4`: low and high labelled items weigh a constant ([CRS] section 5.3).

    Attributes:
        weight: The weight of items with a label <= 0.4 or >= 0.9; [CRS] has 1.4.
    """

    step: Literal["weight_extremes"]
    weight: float = Field(gt=0)


class Portion(Frozen):
    """Llama-2's mixes: of some sources only so many records, drawn uniformly, that they are a share of the result.

    Attributes:
        sources: The data sets or subsets that are drawn from; the others stay whole.
        share: Their share of the result; Llama-2 has 0.5 for helpfulness and 0.1 for safety.
    """

    step: Literal["portion"]
    sources: Annotated[list[str], Field(min_length=1)]
    share: Share


class Keep(Frozen):
    """Keep only the records of some sources; the test data stay whole ([Llama 2] section 3.2.2).

    Attributes:
        sources: The data sets or subsets that are kept.
    """

    step: Literal["keep"]
    sources: Annotated[list[str], Field(min_length=1)]


class Sample(Frozen):
    """A share of the groups; a smaller share is part of a larger one (accuracy against data size, [Llama 2] figure 6).

    Attributes:
        share: The share of the groups that is kept.
    """

    step: Literal["sample"]
    share: Share


class Proportions(Frozen):
    """As many labelled items as have these shares of low and high labels, the rest being mid ([CRS]: 0.11, 0.20).

    Attributes:
        low: The share of labels <= 0.4.
        high: The share of labels >= 0.9.
    """

    step: Literal["proportions"]
    low: Share
    high: Share

    @property
    def mid(self) -> float:
        """What is left."""
        return 1 - self.low - self.high

    @model_validator(mode="after")
    def _leave_a_middle(self) -> "Proportions":
        if self.mid <= 0:
            raise ValueError("low and high leave nothing in between")
        return self


class Mismatched(Frozen):
    """Prompts with the completion of another prompt of the same source, labelled 0, are added.

    Attributes:
        share: The share of the labelled items that get such a twin.
    """

    step: Literal["mismatched"]
    share: float = Field(gt=0, le=1)


class Repeat(Frozen):
    """Records that occur more than once in an epoch.

    Attributes:
        times: How often a data set occurs, or a subset (`hh_rlhf/harmless-base`), which goes before its data set. Of
            1.5, half of the groups occur twice and the others once.
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
