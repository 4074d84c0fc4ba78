"""What kind of failure a forward met. Plain values: an exception would keep the tensors of its frames alive."""

from dataclasses import dataclass

import torch

from assay_service.errors import ForwardFailed


@dataclass(frozen=True, slots=True)
class Fault:
    """A forward that raised.

    Attributes:
        name: the exception's type; a device's message may hold addresses.
        out_of_memory: fewer sequences at once may fit.
        device: nothing can be computed any more.
    """

    name: str
    out_of_memory: bool
    device: bool

    @classmethod
    def of(cls, error: Exception) -> "Fault":
        """What `error` is."""
        text = str(error).lower()
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text
        memory |= "defaultcpuallocator" in text  # a RuntimeError that says "can't allocate memory"
        return cls(type(error).__name__, memory, isinstance(error, torch.AcceleratorError) and not memory)

    def error(self) -> ForwardFailed:
        """A new error to answer with; each item has its own."""
        return ForwardFailed(f"the forward failed with {self.name}")
