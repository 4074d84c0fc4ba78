"""Every contender on the same fresh items, alternating, one resident at a time.

    python -m benchmarks.bench [OUT]

A round starts each contender in turn, alone, and sends it every workload; five rounds, medians. Offline figures include
tokenisation. Caches are off except in the row that says so. Only ratios within one run mean anything.
"""

import json
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

from benchmarks.models import llama
from benchmarks.worker import CONTENDERS, LIMIT, OURS, OURS_HTTP
from benchmarks.workloads import WORKLOADS

ROUNDS = 5

Runs = dict[tuple[str, str], list[dict[str, Any]]]


def measure(model: Path) -> tuple[Runs, list[float]]:
    """All rounds: runs by workload and contender, and the limit in tokens/s of each round."""
    runs: Runs = defaultdict(list)
    limits = []
    turns = [(seed, name) for seed in range(ROUNDS) for name in (LIMIT, *CONTENDERS)]
    for seed, name in track(turns, description="bench"):
        command = [sys.executable, "-m", "benchmarks.worker", name, str(model), str(seed)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if name == LIMIT:
            limits.append(float(rows[0]["tokens_per_s"]))
            continue
        for row in rows:
            runs[row["workload"], name].append(row)
    return runs, limits


def table(runs: Runs, limits: list[float]) -> list[dict[str, Any]]:
    """The rows of the results; `ratio` is how many times faster ours is, by the same measure."""
    rows = []
    for workload in WORKLOADS:
        of = {name: values(runs[workload.name, name], calls=workload.calls) for name in CONTENDERS}
        ours = statistics.median(of[OURS_HTTP if workload.clients else OURS])
        for name, seen in of.items():
            if seen:
                median = statistics.median(seen)
                ratio = median / ours if workload.calls else ours / median
                unit = "ms" if workload.calls else "items/s"
                rows.append(_row(workload.name, name, seen, unit, ratio))
        if not workload.clients and not workload.calls:
            share = [
                run["computed_tokens"] / run["seconds"][0] / limit
                for run, limit in zip(runs[workload.name, OURS], limits, strict=True)
            ]
            rows.append(_row(workload.name, "assay, offline: computed tokens, share of the limit", share, "", 1.0))
    return rows


def values(runs: list[dict[str, Any]], *, calls: bool) -> list[float]:
    """A figure for each round: milliseconds of the median call, or items per second."""
    if calls:
        return [1000 * statistics.median(run["seconds"]) for run in runs]
    return [run["items"] / run["seconds"][0] for run in runs]


def disagreement(runs: Runs) -> float:
    """The largest difference between a contender's logit and ours offline for the same text."""
    differences = (
        abs(float(a) - float(b))
        for (workload, _), seen in runs.items()
        for run, ours in zip(seen, runs.get((workload, OURS), []), strict=False)
        for a, b in zip(run["logits"], ours["logits"], strict=True)
    )
    return max(differences)


def markdown(rows: list[dict[str, Any]], runs: Runs, limits: list[float]) -> str:
    """The results as a page."""
    where = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, bf16"
    limit, apart = statistics.median(limits), disagreement(runs)
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
    """Measures, prints and writes JSON, and Markdown beside it."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results" / "llama-84m.json"
    with tempfile.TemporaryDirectory() as directory:
        runs, limits = measure(llama(Path(directory)))
    rows = table(runs, limits)
    out.write_text(json.dumps(rows, indent=1) + "\n")
    page = markdown(rows, runs, limits)
    out.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
