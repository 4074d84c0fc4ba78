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


Numbers = dict[str, Any]


def report(part: str, act: Callable[[], Numbers]) -> None:
    """Do a part and print its numbers; at an error print the reason and end the process."""
    try:
        line = {"part": part, "numbers": act()}
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "no message")
        print(json.dumps({"part": part, "reason": f"{type(error).__name__}: {first}"[:500]}), flush=True)
        sys.exit(1)
    print(json.dumps(line), flush=True)


def main(shape: str, device: str, parts: list[str]) -> None:
    """Load the model, then do the parts in their order."""
    loaded: list[Subject] = []

    def load() -> Numbers:
        loaded.append(Subject(SHAPES[shape], torch.device(device)))
        return {"kernels": str(loaded[0].model.kernels), "dtype": str(loaded[0].model.dtype)}

    report(LOAD, load)
    for part in parts:
        report(part, lambda part=part: PARTS[part](loaded[0]))  # type: ignore[misc]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
