"""Decide in which numbers a training computes on the device of this process."""

from typing import TypeVar

from pydantic import BaseModel

from assay_service.scoring.kernels.build import has_units
from assay_training.config.model import Adam
from assay_training.distributed.processes import get_accelerator, print_once

SLOW = (
    "compute_dtype: this CPU has no instructions for bfloat16, so torch emulates it, many times slower than float32; "
    "remove the key, or declare `compute_dtype: float32`"
)

Part = TypeVar("Part", bound=BaseModel)


def decide_compute_dtype(config: Part) -> Part:
    """Return a configuration in which every `compute_dtype: auto` is replaced by what this machine computes fastest.

    The run directory records the result, so a run that is resumed on another kind of machine is refused instead of
    continued in other numbers.

    Args:
        config: configuration of a run, or a part of one.
    """
    changed = {name: new for name, value in config if (new := _decide_value(value)) is not value}
    if isinstance(config, Adam) and config.compute_dtype != "float32":
        # float32 loses nothing, and is many times as fast as a bfloat16 that is emulated.
        fast = has_units("bfloat16", get_accelerator().device)
        if config.compute_dtype == "auto":
            changed["compute_dtype"] = "bfloat16" if fast else "float32"
        elif not fast:
            print_once(SLOW)
    return config.model_copy(update=changed)


def _decide_value(value: object) -> object:
    """Return a part of a configuration, or a list of them, decided; any other value unchanged."""
    if isinstance(value, BaseModel):
        return decide_compute_dtype(value)
    if isinstance(value, list | tuple) and any(isinstance(one, BaseModel) for one in value):
        return type(value)(map(_decide_value, value))
    return value
