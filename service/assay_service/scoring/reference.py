"""Hold the histogram of a checkpoint's logits, with which the logits of a service are compared."""

from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field, model_validator

from assay_service.validation import SHA256_PATTERN


class ReferenceHistogram(BaseModel):
    """The distribution of a signal's logits over a reference sample.

    Attributes:
        edges: increasing bounds of the bins.
        counts: number of logits below the first edge, in each bin, and from the last edge on.
        samples: number of all logits.
        samples_sha256: SHA-256 of the sample, which says where the numbers come from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    edges: tuple[float, ...] = Field(min_length=2)
    counts: tuple[int, ...]
    samples: int = Field(gt=0)
    samples_sha256: str = Field(pattern=SHA256_PATTERN)

    @model_validator(mode="after")
    def _check_sums(self) -> "ReferenceHistogram":
        if not all(low < high for low, high in pairwise(self.edges)):
            raise ValueError("reference.edges: must increase")
        if len(self.counts) != len(self.edges) + 1 or min(self.counts) < 0:
            raise ValueError("reference.counts: must have one number of logits more than there are edges")
        if sum(self.counts) != self.samples:
            raise ValueError("reference.samples: must be the sum of the counts")
        return self
