"""Hold the histogram of a checkpoint's logits, with which the logits of a service are compared."""

from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from assay_service.validation import SHA256_PATTERN


class ReferenceHistogram(BaseModel):
    """The distribution of a signal's logits over a reference sample.

    Attributes:
        edges: increasing bounds of the bins. A logit that equals an edge is in the bin above it.
        counts: number of logits below the first edge, in each bin, and from the last edge on.
        samples: number of all logits.
        samples_sha256: SHA-256 of the sample, which says where the numbers come from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    edges: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(min_length=2)
    counts: tuple[Annotated[int, Field(ge=0)], ...]
    samples: int = Field(gt=0)
    samples_sha256: str = Field(pattern=SHA256_PATTERN)

    @model_validator(mode="after")
    def _check_sums(self) -> "ReferenceHistogram":
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("edges must increase; run `assay calibrate` again")
        if len(self.counts) != len(self.edges) + 1 or sum(self.counts) != self.samples:
            raise ValueError(
                "counts must have one number more than edges, with the sum `samples`; run `assay calibrate` again"
            )
        return self
