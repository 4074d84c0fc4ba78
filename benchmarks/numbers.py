"""Seconds of CPU time in each kind of numbers, and of transformers in float32, on one thread.

    python -m benchmarks.numbers [--out benchmarks/results/numbers] [--rounds 3] [--slow-rounds 1] [--prompts 4]

One process holds all contenders. A round scores the same fresh items by each of them, rendering included, and starts
with another one each time. What counts is the median of the rounds' quotients, of CPU time, since the machine may be
busy. bfloat16 takes part in the first `--slow-rounds` only, because a CPU without its instructions emulates it.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from assay_service import loader
from assay_service.memory import keep_freed_memory
from assay_service.scoring.base_files import load_base
from assay_service.scoring.compute import Number
from assay_service.scoring.head import Head
from assay_service.scoring.item import Item
from assay_service.scoring.kernels.build import has_units
from assay_service.scoring.model import RewardModel
from assay_service.settings import parse
from benchmarks import models, workloads
from benchmarks.contenders.padded import Padded
from benchmarks.two_heads import list_features
from benchmarks.workloads import Group, Workload
from benchmarks.written import describe_machine, write

CPU = torch.device("cpu")
SMALL = 8  # items of a small padded batch
OURS: Mapping[str, Number] = {
    "assay, int8": "int8",
    "assay, float32 over bf16 weights": "float32",
    "assay, bfloat16": "bfloat16",
}
SLOW = "assay, bfloat16"
FLOATS = "assay, float32 weights"
ALONE = "transformers, float32, one by one"
SORTED = f"transformers, float32, batches of {SMALL} sorted by length"

Score = Callable[[list[Group]], object]


def build_render(model: Path) -> Callable[[list[Group]], list[Any]]:
    """Build the function that turns groups into token sequences, as the service does."""
    signal = {"base": str(model), "kind": "preference", "eos": "template", "unfinished": "score"}
    settings = parse({"signals": {"s": signal}, "default": "s"}, model).settings
    assert settings is not None
    registry = loader.load(settings)
    assert registry.invariant == {"s": True}, "a score that depends on the batch is not worth timing"
    renderer = registry.signals["s"].renderer
    return lambda groups: [
        renderer.render(Item.of(group.prompt, text)).sequence for group in groups for text in group.completions
    ]


def load_ours(model: Path, dtype: torch.dtype, compute: Number) -> RewardModel:
    """Load the base with weights of `dtype`, which computes in `compute`."""
    loaded = RewardModel(load_base(model, dtype, CPU), CPU, compute)
    loaded.add_signal("s", Head(torch.ones(1, loaded.hidden_size), None))
    if has_units(compute, CPU):  # to try emulated products takes minutes, and does not make them slower
        loaded.make_invariant()
    return loaded


def load_contenders(model: Path) -> dict[str, Score]:
    """Load all contenders."""
    render = build_render(model)

    def bind(loaded: RewardModel) -> Score:
        return lambda groups: loaded.read(render(groups), ["s"])

    made = {name: bind(load_ours(model, torch.bfloat16, compute)) for name, compute in OURS.items()}
    made[FLOATS] = bind(load_ours(model, torch.float32, "float32"))
    made[ALONE] = Padded(model, 1, dtype=torch.float32).score
    made[SORTED] = Padded(model, SMALL, by_length=True, dtype=torch.float32).score
    return made


def measure(contenders: Mapping[str, Score], made: Workload, rounds: int, slow_rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of CPU time of each round, by contender."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    with torch.inference_mode():
        for number in range(-1, rounds):  # the first round warms up
            groups = workloads.make_groups(made, number)
            start = number % len(names)
            for name in names[start:] + names[:start]:
                if name == SLOW and not 0 <= number < slow_rounds:
                    continue
                began_s = time.process_time()
                contenders[name](groups)
                seconds[name] += [time.process_time() - began_s] if number >= 0 else []
    return seconds


def format_rows(workload: str, seconds: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """Compute a row for each contender; its ratios are medians of the rounds' quotients."""
    rows = []
    for name, seen in seconds.items():
        quotients = {
            other: statistics.median(a / b for a, b in zip(seconds[other], seen, strict=False))
            for other in (ALONE, SORTED, SLOW)
            if seconds[other] and seen
        }
        rows.append({"workload": workload, "contender": name, "seconds": seen, "times as fast as": quotients})
    return rows


def main() -> None:
    """Measure, print, and write a JSON and a Markdown file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "numbers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slow-rounds", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=4, help="Prompts of a round of pairs; best of 16 has a quarter.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `assay serve` does
    with tempfile.TemporaryDirectory() as directory:
        contenders = load_contenders(models.write_llama(Path(directory), models.make_words()))
    rows = []
    for name, prompts, completions in (("HH pairs", arguments.prompts, 2), ("best of 16", arguments.prompts // 4, 16)):
        made = workloads.make_workload(name, prompts, completions)
        rows += format_rows(name, measure(contenders, made, arguments.rounds, arguments.slow_rounds))
    text = (
        f"# Kinds of numbers\n\n`python -m benchmarks.numbers --rounds {arguments.rounds} --prompts {arguments.prompts}"
        f" --slow-rounds {arguments.slow_rounds}`; {describe_machine()}, {list_features()}; the random Llama of 84 "
        f"million parameters. Seconds of CPU time, rendering included. Load average at the end: "
        f"{os.getloadavg()[0]:.0f} on {os.cpu_count()} cores.\n\n"
    )
    lines = [f"| items | contender | rounds | median s | times as fast as {ALONE} | … as {SORTED} | … as {SLOW} |"]
    lines.append("|---" * 7 + "|")
    for row in rows:
        seen, ratios = row["seconds"], row["times as fast as"]
        median = f"{statistics.median(seen):.2f}" if seen else ""
        cells = [f"{ratios[other]:.2f}" if other in ratios else "" for other in (ALONE, SORTED, SLOW)]
        lines.append(f"| {row['workload']} | {row['contender']} | {len(seen)} | {median} | {' | '.join(cells)} |")
    write(arguments.out, text, lines, rows)


if __name__ == "__main__":
    main()
