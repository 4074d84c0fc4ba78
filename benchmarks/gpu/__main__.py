"""Measure reward models on one GPU, with a time limit for each part; the command of `benchmarks/gpu.sh`.

    python -m benchmarks.gpu [--device cuda] [--shape NAME]... [--out benchmarks/results/gpu] [--seconds 390]

A part that fails, or takes too long, is a row with its reason and without numbers; the others are measured. The exit
status is 1 unless parity and invariance hold for every shape. `--device cpu --shape tiny` runs the same code anywhere.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.rows import Row, Rows, format_page
from benchmarks.gpu.shapes import SHAPES
from benchmarks.gpu.worker import LOAD

# Seconds of each part; what one shape does not use is left to the next.
LIMITS: Mapping[str, float] = {
    LOAD: 60, "parity": 45, "invariance": 45, "share": 30, "latency": 60, "best of 16": 20, "cost": 40,
}  # fmt: skip


def describe_machine(device: str) -> dict[str, str]:
    """Describe card, driver and versions, for the results."""
    found = {"device": device, "torch": torch.__version__, "transformers": transformers.__version__}
    found |= {"python": platform.python_version(), "card": "none", "driver": "none", "CUDA": str(torch.version.cuda)}
    if torch.device(device).type == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        cells = done.stdout.splitlines()[0].split(", ") if done.returncode == 0 and done.stdout else []
        if len(cells) == 3:
            found |= {"card": f"{cells[0]}, {cells[1]}", "driver": cells[2]}
    return found


def measure(shape: str, device: str, rows: Rows, limits: Mapping[str, float]) -> None:
    """Measure the parts of one shape; a new process continues after a part that failed."""
    left = list(PARTS)
    while left:
        failed = rows.run(shape, device, left, limits)
        if failed is None:
            return
        if failed.part == LOAD:
            for part in left:
                rows.add(Row(shape, part, reason=f"not run, because the model was not loaded: {failed.reason}"))
            return
        left = left[left.index(failed.part) + 1 :]


def main() -> int:
    """Measure, print each row, and write JSON and Markdown after every shape; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--shape", action="append", choices=SHAPES, help="May be repeated; else the two published ones."
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "results" / "gpu")
    parser.add_argument("--seconds", type=float, default=390, help="For everything; what is not measured then fails.")
    parser.add_argument("--limit", action="append", default=[], metavar="PART=S", help="Another limit of one part.")
    arguments = parser.parse_args()
    limits = dict(LIMITS)
    for given in arguments.limit:
        part, _, seconds = given.partition("=")
        if part not in limits:
            parser.error(f"--limit {given}: no such part; there are {', '.join(limits)}")
        limits[part] = float(seconds)
    shapes = arguments.shape or ["qwen3-0.6b", "llama-3.1-8b"]
    machine: dict[str, Any] = describe_machine(arguments.device)
    print(json.dumps(machine), flush=True)
    rows = Rows(arguments.seconds)
    for shape in shapes:
        measure(shape, arguments.device, rows, limits)
        content = {"machine": machine, "rows": [row.to_json() for row in rows.rows]}
        arguments.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(format_page(machine, rows.rows))
    print(format_page(machine, rows.rows))
    return 0 if rows.holds(shapes) else 1


if __name__ == "__main__":
    sys.exit(main())
