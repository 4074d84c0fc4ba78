"""Measure the parts of one shape in a process of its own.

    python -m benchmarks.gpu.worker SHAPE DEVICE PART...

Prints a JSON object per line: `part`, with `numbers` or `reason`. It ends after the first part that fails, because the
device may be unusable then.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.parts import PARTS, Subject
from benchmarks.gpu.shapes import SHAPES

LOAD = "load"


def report(part: str, act: Callable[[], Any]) -> Any:
    """Do a part and print its numbers; at an error print the reason and end the process."""
    try:
        done = act()
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
        print(json.dumps({"part": part, "reason": reason[:500]}), flush=True)
        sys.exit(1)
    numbers = done if isinstance(done, dict) else {"kernels": str(done.model.kernels), "dtype": str(done.model.dtype)}
    print(json.dumps({"part": part, "numbers": numbers}), flush=True)
    return done


def main(shape: str, device: str, parts: list[str]) -> None:
    """Load the model, then do the parts in their order."""
    subject = report(LOAD, lambda: Subject(SHAPES[shape], torch.device(device)))
    for part in parts:
        report(part, lambda part=part: PARTS[part](subject))  # type: ignore[misc]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
