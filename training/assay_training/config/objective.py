"""What a reward model is trained towards."""

from typing import Annotated, Literal

from pydantic import Field

from assay_training.config.base import Frozen


class LabelledMargin(Frozen):
    """Target margins from the records: `scale` times a pair's gap; 0 where there is none (margin paper (3)).

    Attributes:
        scale: of the gaps, which are in 0..1. Llama-2's two schemes are 1 and 3 for gaps of 0, 1/3, 2/3 and 1.
    """

    kind: Literal["labelled"]
    scale: float = Field(gt=0)


class BatchMeanMargin(Frozen):
    """The batch's mean margin is the target of the pairs below it (margin paper (5) to (7))."""

    kind: Literal["batch_mean"]


class PreferenceObjective(Frozen):
    """Bradley-Terry over all pairs of a prompt, averaged per prompt, then over prompts (thesis 2.12).

    Attributes:
        kind: preference.
        margin: target margins; None for none.
        l2: weight of the squared logits; 0.001 in the thesis author's code.
        centring: weight of the squared sums of a pair's logits.
    """

    kind: Literal["preference"]
    margin: Annotated[LabelledMargin | BatchMeanMargin, Field(discriminator="kind")] | None = None
    l2: float = Field(0.0, ge=0)
    centring: float = Field(0.0, ge=0)

    @property
    def served(self) -> bool:
        """Whether the head's output is a logit."""
        return True


class AbsoluteObjective(Frozen):
    """A quality in 0..1 for each item (thesis 5.3).

    Attributes:
        kind: absolute.
        loss: `logistic`: cross-entropy of σ(logit); `sig+mse`: squared error of σ(logit); `mse+penalty`: squared error
            of the raw output, which is then no logit, so such a model is measured and not served.
    """

    kind: Literal["absolute"]
    loss: Literal["logistic", "sig+mse", "mse+penalty"] = "logistic"

    @property
    def served(self) -> bool:
        """Whether the head's output is a logit."""
        return self.loss != "mse+penalty"


Objective = Annotated[PreferenceObjective | AbsoluteObjective, Field(discriminator="kind")]
