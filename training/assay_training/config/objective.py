"""Declare the training objectives of reward models."""

from typing import Annotated, Literal

from pydantic import Field

from assay_training.config.base import Frozen


class LabelledMargin(Frozen):
    """Target margins from the records: `scale` times a pair's gap, and 0 for a pair without one ([Margin] equation 3).

    Attributes:
        kind: `labelled`.
        scale: The factor from a pair's gap (0..1) to its target margin in logits; [Llama 2] uses 1 and 3.
    """

    kind: Literal["labelled"]
    scale: float = Field(gt=0)


class BatchMeanMargin(Frozen):
    """The batch's mean margin as the target of all pairs below it ([Margin] equations 5 to 7).

    Attributes:
        kind: `batch_mean`.
    """

    kind: Literal["batch_mean"]


class PreferenceObjective(Frozen):
    """The Bradley-Terry loss, averaged over the pairs of each prompt and then over prompts ([CRS] equation 2.12).

    Attributes:
        kind: `preference`.
        margin: The target margins of pairs; null sets none.
        l2: The weight of the squared logits in the loss; the code of [CRS] uses 0.001.
        centring: The weight of the squared sum of a pair's two logits in the loss.
    """

    kind: Literal["preference"]
    margin: Annotated[LabelledMargin | BatchMeanMargin, Field(discriminator="kind")] | None = None
    l2: float = Field(0.0, ge=0)
    centring: float = Field(0.0, ge=0)

    @property
    def served(self) -> bool:
        """Return whether the head's output is a logit, which the service can serve."""
        return True


class AbsoluteObjective(Frozen):
    """A loss on the quality in 0..1 of each item ([CRS] section 5.3).

    The output of a model that is trained by `mse+penalty` is not a logit: such a model is measured, not served.

    Attributes:
        kind: `absolute`.
        loss: `logistic`: cross-entropy of σ(logit); `sig+mse`: squared error of σ(logit); `mse+penalty`: squared error
            of the raw output, not served.
    """

    kind: Literal["absolute"]
    loss: Literal["logistic", "sig+mse", "mse+penalty"] = "logistic"

    @property
    def served(self) -> bool:
        """Return whether the head's output is a logit, which the service can serve."""
        return self.loss != "mse+penalty"


Objective = Annotated[PreferenceObjective | AbsoluteObjective, Field(discriminator="kind")]
