"""Define a tensor that is read when it is asked for, so that one tensor at a time is in memory beside the model."""

from abc import ABC, abstractmethod

import torch


class LazyTensor(ABC):
    """A tensor of a file.

    Attributes:
        shape: its shape.
    """

    shape: tuple[int, ...]

    @abstractmethod
    def read(self) -> torch.Tensor:
        """Return the values."""

    def __getitem__(self, _index: object) -> torch.Tensor:
        """Return the values; transformers asks for them by `tensor[...]`."""
        return self.read()
