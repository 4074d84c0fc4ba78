"""Classify the failures of a forward pass.

A fault holds plain values only: an exception would keep the tensors of its frames alive.
"""

from dataclasses import dataclass

import torch

from assay_service.errors import ForwardFailed


@dataclass(frozen=True, slots=True)
class Fault:
    """A forward pass that raised an exception.

    Attributes:
        name: type of the exception; its message is not kept, as a device's message may hold addresses.
        out_of_memory: True if memory ran out, so that fewer sequences at once may fit.
        device: True if the device failed, so that nothing can be computed any more.
    """

    name: str
    out_of_memory: bool
    device: bool

    @classmethod
    def classify(cls, error: Exception) -> "Fault":
        """Return the fault that an exception of a forward pass stands for."""
        text = str(error).lower()
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text
        # On the CPU, torch raises a plain RuntimeError that says "can't allocate memory".
        memory |= "defaultcpuallocator" in text
        return cls(type(error).__name__, memory, isinstance(error, torch.AcceleratorError) and not memory)

    def make_error(self) -> ForwardFailed:
        """Return a new error to answer one item with; items do not share an exception."""
        return ForwardFailed(f"the forward pass failed with {self.name}")


def make_device_error() -> ForwardFailed:
    """Return a new error for an item that no device can compute any more."""
    return ForwardFailed("the device has failed and the service is shutting down")
