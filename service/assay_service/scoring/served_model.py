"""Define what a model must offer to be served, whichever engine computes it."""

from collections.abc import Sequence
from typing import Protocol

import torch

from assay_service.scoring.architectures import Architecture
from assay_service.scoring.kernels.backend import Kernels
from assay_service.scoring.layout import TokenSequence


class ServedModel(Protocol):
    """A model that computes the logits of one signal or several.

    Attributes:
        architecture: properties of the base's architecture that scoring depends on.
        device: device on which it computes.
        kernels: description of the code that computes the base.
        shares_prompts: whether the prompt is computed once for all sequences of a forward pass that have it.
    """

    architecture: Architecture
    device: torch.device
    kernels: Kernels
    shares_prompts: bool

    def get_adapter_names(self, name: str) -> tuple[str, ...]:
        """Return the names of the adapters of signal `name`; signals with equal names share a forward pass."""
        ...

    def get_vocabulary_size(self, name: str) -> int:
        """Return the number of token ids that signal `name` embeds."""
        ...

    def logits(self, sequences: Sequence[TokenSequence], name: str) -> torch.Tensor:
        """Return the logits of signal `name`, fp32 `[n]`, in the order of `sequences`."""
        ...

    def read(self, sequences: Sequence[TokenSequence], names: Sequence[str]) -> list[list[tuple[float, ...]]]:
        """Return the numbers of the heads of several signals by one forward pass, for each signal and sequence."""
        ...
