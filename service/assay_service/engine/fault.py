"""Classify the failures of a forward pass, which the engine handles as follows.

- Out of memory: the batch is split in two and tried again, once.
- The device failed: nothing is computed any more.
- Any other exception: the sequences run one by one, so that one bad sequence does not fail its neighbors.
- A logit that is not finite: only that signal of that sequence fails.

A fault holds plain values only: an exception would keep the tensors of its frames alive.
"""

import logging
from dataclasses import dataclass

import torch

from assay_service.errors import ForwardFailed

_log = logging.getLogger("assay")


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
    def classify(cls, error: Exception, *, is_device_working: bool) -> "Fault":
        """Return the fault that an exception of a forward pass stands for.

        Args:
            error: the exception.
            is_device_working: whether the device still did what it was asked for after the exception.
        """
        text = str(error).lower()
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text
        # On the CPU, torch raises a plain RuntimeError that says "can't allocate memory".
        memory |= "defaultcpuallocator" in text
        device = not is_device_working or (isinstance(error, torch.AcceleratorError) and not memory)
        return cls(type(error).__name__, memory, device)

    def make_error(self) -> ForwardFailed:
        """Return a new error to answer one item with; items do not share an exception."""
        return ForwardFailed(f"the forward pass failed with {self.name}")


def is_device_working(device: torch.device) -> bool:
    """Return whether a device still finishes its work, after a forward pass on it failed.

    After an error such as an illegal access of memory, every later call of the process fails on that device. Libraries
    report such errors by exceptions of their own: cuBLAS by a plain RuntimeError. The synchronization then fails, too.
    """
    if device.type not in ("cuda", "xpu"):  # the others have no state that an error could spoil
        return True
    try:
        torch.accelerator.synchronize(device)
    except RuntimeError as error:
        _log.error("the device %s has failed: %s", device, type(error).__name__)
        return False
    return True


def make_device_error() -> ForwardFailed:
    """Return a new error for a sequence that is not computed, because the device has failed."""
    return ForwardFailed("the device has failed and the service is shutting down")
