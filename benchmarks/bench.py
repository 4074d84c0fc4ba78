"""Every contender on the same fresh items, alternating, one resident at a time.

    python -m benchmarks.bench [OUT]

What each process measured is kept in `OUT` with the ending `.jsonl`, so a run that was stopped goes on where it was.

A round starts each contender in turn, alone, and sends it every workload; five rounds, medians. Offline figures include
tokenization. Caches are off except in the row that says so; vLLM's prefix cache is on, within a call. Before the rounds
each setting of vLLM runs once, and the fastest takes part. Only ratios within one run mean anything.
"""

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from benchmarks.contenders.vllm import SETTINGS
from benchmarks.memory import write_adapters
from benchmarks.models import make_words, write_llama
from benchmarks.worker import CONTENDERS, LIMIT, OURS, OURS_HTTP
from benchmarks.workloads import WORKLOADS

ROUNDS = 5

Runs = dict[tuple[str, str], list[dict[str, Any]]]


class Turns:
    """The runs of workers, each in a process of its own; their printed rows are kept.

    Args:
        model: directory of the checkpoint that they score with.
        kept: file with one JSON object for each finished turn.
    """

    def __init__(self, model: Path, kept: Path) -> None:
        self._model = model
        self._kept = kept
        lines = kept.read_text().splitlines() if kept.is_file() else []
        self._done: dict[tuple[str, int], list[dict[str, Any]]] = {
            (line["name"], line["seed"]): line["rows"] for line in map(json.loads, lines)
        }

    def run(self, name: str, seed: int, workloads: int = len(WORKLOADS)) -> list[dict[str, Any]]:
        """Return the rows of one contender and seed."""
        if (name, seed) not in self._done:
            command = [sys.executable, "-m", "benchmarks.worker", name, str(self._model), str(seed), str(workloads)]
            environment = os.environ | (SETTINGS[name].environment if name in SETTINGS else {})
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            with self._kept.open("a") as kept:
                kept.write(json.dumps({"name": name, "seed": seed, "rows": rows}) + "\n")
            self._done[name, seed] = rows
        return self._done[name, seed]


def compute_rate(row: dict[str, Any]) -> float:
    """Compute the items per second of one run."""
    return float(row["items"] / row["seconds"][0])


def measure_vllm_settings(turns: Turns) -> dict[str, list[float]]:
    """Measure the items per second of each setting on the first two workloads; the same items for all."""
    tried = track(SETTINGS, description="vLLM's settings")
    return {name: [compute_rate(row) for row in turns.run(name, 1000, workloads=2)] for name in tried}


def measure(turns: Turns, names: list[str]) -> tuple[Runs, list[float]]:
    """Run all rounds; return runs by workload and contender, and the limit in tokens/s of each round."""
    runs: Runs = defaultdict(list)
    limits = []
    order = [(seed, name) for seed in range(ROUNDS) for name in (LIMIT, *names)]
    for seed, name in track(order, description="bench"):
        rows = turns.run(name, seed)
        if name == LIMIT:
            limits.append(float(rows[0]["tokens_per_s"]))
            continue
        for row in rows:
            runs[row["workload"], name].append(row)
    return runs, limits


def measure_memory(model: Path) -> list[dict[str, Any]]:
    """Measure peak memory with one adapter on the base and with two, in the same number of processes."""
    write_adapters(model, 2)
    peaks: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for count, seen in peaks.items():
            command = [sys.executable, "-m", "benchmarks.memory", str(model), str(count)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            seen.append(json.loads(done.stdout.splitlines()[-1])["peak_mib"])
    one, two = (statistics.median(peaks[count]) for count in (1, 2))
    return [
        _row("peak memory, as a multiple of one adapter's", "assay, one adapter on a base", peaks[1], "MiB", 1.0),
        _row(
            "peak memory, as a multiple of one adapter's", "assay, two adapters on a base", peaks[2], "MiB", two / one
        ),
    ]


def build_rows(runs: Runs, limits: list[float]) -> list[dict[str, Any]]:
    """Build the rows of the results; `ratio` is how many times faster ours is, by the same measure."""
    rows = []
    for workload in WORKLOADS:
        figures = {
            name: compute_values(seen, calls=workload.calls)
            for (ran, name), seen in runs.items()
            if ran == workload.name
        }
        ours = statistics.median(figures[OURS_HTTP if workload.clients else OURS])
        for name, seen in figures.items():
            median = statistics.median(seen)
            ratio = median / ours if workload.calls else ours / median
            unit = "ms" if workload.calls else "items/s"
            rows.append(_row(workload.name, name, seen, unit, ratio))
        if not workload.clients and not workload.calls:
            share = [
                compute_rate(run) / run["items"] * run["computed_tokens"] / limit
                for run, limit in zip(runs[workload.name, OURS], limits, strict=True)
            ]
            rows.append(_row(workload.name, "assay, offline: computed tokens, share of the limit", share, "", 1.0))
    return rows


def compute_values(runs: list[dict[str, Any]], *, calls: bool) -> list[float]:
    """Compute a figure for each round: milliseconds of the median call, or items per second."""
    if calls:
        return [1000 * statistics.median(run["seconds"]) for run in runs]
    return [compute_rate(run) for run in runs]


def find_disagreement(runs: Runs) -> float:
    """Find the largest difference between a contender's logit and ours for the same text."""
    differences = [
        abs(float(a) - float(b))
        for (workload, _), seen in runs.items()
        for run, ours in zip(seen, runs.get((workload, OURS)) or runs[workload, OURS_HTTP], strict=True)
        for a, b in zip(run["logits"], ours["logits"], strict=True)
    ]
    assert all(math.isfinite(difference) for difference in differences)
    return max(differences)


def format_page(rows: list[dict[str, Any]], runs: Runs, limits: list[float]) -> str:
    """Format the results as a page."""
    where = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, bf16"
    limit, apart = statistics.median(limits), find_disagreement(runs)
    head = [
        "# Benchmark\n",
        f"`make bench`; {where}; random Llama of 84M parameters; {ROUNDS} rounds, medians. *Ours / it*: how many times",
        "faster ours is (offline, or over HTTP where there are clients); below one we lose.",
        f"The limit: {limit:.0f} tokens/s. Largest difference of a logit to ours: {apart:.4f}.\n",
        "| workload | contender | median | min | max | unit | ours / it |",
        "|---|---|---|---|---|---|---|",
    ]
    body = [
        "| {workload} | {contender} | {median:.3g} | {min:.3g} | {max:.3g} | {unit} | {ratio:.2f} |".format(**row)
        for row in rows
    ]
    return "\n".join([*head, *body]) + "\n"


def _row(workload: str, contender: str, seen: list[float], unit: str, ratio: float) -> dict[str, Any]:
    figures = {"median": statistics.median(seen), "min": min(seen), "max": max(seen)}
    return {"workload": workload, "contender": contender, **figures, "unit": unit, "ratio": ratio}


def main() -> None:
    """Measure, print, and write JSON and Markdown beside it."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results" / "llama-84m.json"
    with tempfile.TemporaryDirectory() as directory:
        model = write_llama(Path(directory), make_words())
        kept = out.with_suffix(".jsonl")
        turns = Turns(model, kept)
        tried = measure_vllm_settings(turns)
        best = max(tried, key=lambda name: math.prod(tried[name]))
        runs, limits = measure(turns, [name for name in CONTENDERS if name not in SETTINGS or name == best])
        rows = build_rows(runs, limits) + measure_memory(model)
    for number, workload in enumerate(WORKLOADS[:2]):
        for name, seen in tried.items():
            ratio = tried[best][number] / seen[number]
            rows.append(
                _row(f"{workload.name}, vLLM's settings, against the chosen", name, [seen[number]], "items/s", ratio)
            )
    out.write_text(json.dumps(rows, indent=1) + "\n")
    kept.unlink()
    page = format_page(rows, runs, limits)
    out.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
