"""Seconds of both signals of a two-head model against those of one signal.

    python -m benchmarks.two_heads [--out benchmarks/results/two_heads] [--pairs 15]

Each pair scores the same fresh items twice in a row, rendering included. They are scored once by one signal, and once
by both, which share the forward pass. Their order alternates from pair to pair. What counts is the median of the pairs'
quotients, of CPU time where the machine is busy.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from assay_service import loader
from assay_service.registry import Registry
from assay_service.scoring.item import Item
from assay_service.settings import parse
from benchmarks import models, workloads
from benchmarks.written import describe_machine, write

ITEMS = 8
LAYERS = 4  # of the 12, because the test at start takes long; heads then weigh more, not less
FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def serve_two_heads(directory: Path) -> Registry:
    """Serve the random Llama with a head of two outputs, in fp32, as two signals."""
    models.write_llama(directory, models.make_words(), layers=LAYERS)
    path, config = directory / "model.safetensors", directory / "config.json"
    torch.manual_seed(1)
    save_file(load_file(path) | {"score.weight": torch.randn(2, 768) * 0.02}, path)
    keys = json.loads(config.read_text()) | {"id2label": {"0": "preference", "1": "absolute"}}
    config.write_text(json.dumps(keys))
    common = {"base": str(directory), "eos": "template", "unfinished": "error", "dtype": "float32"}
    signals = {kind: {**common, "kind": kind, "output": kind} for kind in ("preference", "absolute")}
    settings = parse({"signals": signals, "default": "preference"}, directory).settings
    assert settings is not None
    registry = loader.load(settings)
    assert all(registry.invariant.values()), "a score that depends on the batch is not worth timing"
    return registry


def score(registry: Registry, items: list[Item], *, both: bool) -> tuple[float, float]:
    """Measure the seconds of rendering and scoring `items` by one signal or by both, on the clock and of CPU time."""
    signal = registry.signals["preference"]
    trunk = registry.trunks["preference"]
    assert trunk.signals == ("preference", "absolute")
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    sequences = [signal.renderer.render(item).sequence for item in items]
    signal.model.read(sequences, trunk.signals if both else trunk.signals[:1])
    return time.perf_counter() - started_s, time.process_time() - started_cpu_s


def measure(registry: Registry, pairs: int) -> list[dict[str, float]]:
    """Measure the seconds of one signal and of both, for each pair."""
    measured = []
    with torch.inference_mode():
        for number in range(-1, pairs):
            groups = workloads.make_groups(workloads.WORKLOADS[0], number)
            items = [Item.of(group.prompt, text) for group in groups for text in group.completions][:ITEMS]
            order = (False, True) if number % 2 else (True, False)
            seconds = {both: score(registry, items, both=both) for both in order}
            if number >= 0:  # the first pair warms up
                names = ("one_s", "one_cpu_s", "both_s", "both_cpu_s")
                measured.append(dict(zip(names, (*seconds[False], *seconds[True]), strict=True)))
    return measured


def list_features() -> str:
    """List the features of this CPU that matrix products use, by `lscpu`."""
    listed = subprocess.run(["lscpu"], check=True, capture_output=True, text=True).stdout
    words = set(listed.split())
    model = next(line.partition(":")[2].strip() for line in listed.splitlines() if line.startswith("Model name"))
    return f"{model}: {' '.join(f for f in FEATURES if f in words) or 'none of ' + ' '.join(FEATURES)}"


def main() -> None:
    """Measure, print, and write a JSON and a Markdown file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "two_heads")
    parser.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        pairs = measure(serve_two_heads(Path(directory)), arguments.pairs)
    text = (
        f"# Two signals of one forward pass\n\n`python -m benchmarks.two_heads`; {describe_machine()}, "
        f"{list_features()}; {LAYERS} layers of the random Llama in fp32, {ITEMS} HH-like items a round, "
        f"{len(pairs)} pairs. Load average of the machine at the end: {os.getloadavg()[0]:.0f} on "
        f"{os.cpu_count()} cores.\n\n"
    )
    lines = ["| clock | one signal, s | both signals, s | both / one, median of pairs | min | max |", "|---" * 6 + "|"]
    for clock, unit in (("wall", "s"), ("CPU", "cpu_s")):
        one, both = ([pair[f"{name}_{unit}"] for pair in pairs] for name in ("one", "both"))
        quotients = sorted(b / a for a, b in zip(one, both, strict=True))
        medians = (statistics.median(seconds) for seconds in (one, both, quotients))
        cells = (f"{number:.3f}" for number in (*medians, quotients[0], quotients[-1]))
        lines.append(f"| {clock} | {' | '.join(cells)} |")
    write(arguments.out, text, lines, pairs)


if __name__ == "__main__":
    main()
