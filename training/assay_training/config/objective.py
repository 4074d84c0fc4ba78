"""What a reward model is trained towards."""

from typing import Annotated, Literal

from pydantic import Field

from assay_training.config.base import Frozen


class LabelledMargin(Frozen):
    """Target margins from the records: `scale` times a pair's gap; 0 where there is none ([Margin] equation 3).

    Attributes:
        kind: `labelled`.
        scale: What a pair's gap (0..1) is multiplied by to give its target margin, in logits; Llama-2's two
            schemes are 1 and 3.
    """

    kind: Literal["labelled"]
    scale: float = Field(gt=0)


class BatchMeanMargin(Frozen):
    """The batch's mean margin is the target of the pairs below it ([Margin] equations 5 to 7).

    Attributes:
        kind: `batch_mean`.
    """

    kind: Literal["batch_mean"]


class PreferenceObjective(Frozen):
    """Bradley-Terry over all pairs of a prompt, averaged per prompt, then over prompts (thesis 2.12).

    Attributes:
        kind: `preference`.
        margin: The target margins of pairs; null sets none.
        l2: The weight of the squared logits in the loss; the code of [CRS] has 0.001.
        centring: The weight of the squared sum of a pair's two logits in the loss.
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
        kind: `absolute`.
        loss: `logistic` is the cross-entropy of σ(logit) against the label, `sig+mse` the squared error of σ(logit),
            `mse+penalty` the squared error of the raw output. The last is no logit: it is measured, not served.
    """

    kind: Literal["absolute"]
    loss: Literal["logistic", "sig+mse", "mse+penalty"] = "logistic"

    @property
    def served(self) -> bool:
        """Whether the head's output is a logit."""
        return self.loss != "mse+penalty"


Objective = Annotated[PreferenceObjective | AbsoluteObjective, Field(discriminator="kind")]
