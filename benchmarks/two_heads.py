"""Seconds of both signals of a two-head model against those of one signal.

    python -m benchmarks.two_heads [--out benchmarks/results/two_heads] [--pairs 15]

Each pair scores the same fresh items twice in a row, rendering included: once by one signal, and once by both, which
share the forward pass. Their order alternates from pair to pair. What counts is the median of the pairs' quotients.
"""

import argparse
import json
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
from benchmarks.written import machine, write

ITEMS = 16
LAYERS = 4  # of the 12, because the test at start takes long; heads then weigh more, not less
FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def two_heads(directory: Path) -> Registry:
    """The random Llama with a head of two outputs, served in fp32 as two signals."""
    models.llama(directory, models.words(), layers=LAYERS)
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


def score(registry: Registry, items: list[Item], *, both: bool) -> float:
    """The seconds of rendering and scoring `items` by one signal or by both."""
    signal = registry.signals["preference"]
    trunk = registry.trunks["preference"]
    assert trunk.signals == ("preference", "absolute")
    started_s = time.perf_counter()
    sequences = [signal.renderer.render(item).sequence for item in items]
    signal.model.read(sequences, trunk.signals if both else trunk.signals[:1])
    return time.perf_counter() - started_s


def measure(registry: Registry, pairs: int) -> list[tuple[float, float]]:
    """Seconds of one signal and of both, for each pair."""
    measured = []
    with torch.inference_mode():
        for number in range(-1, pairs):
            groups = workloads.groups_of(workloads.WORKLOADS[0], number)
            items = [Item.of(group.prompt, text) for group in groups for text in group.completions][:ITEMS]
            order = (False, True) if number % 2 else (True, False)
            seconds = {both: score(registry, items, both=both) for both in order}
            if number >= 0:  # the first pair warms up
                measured.append((seconds[False], seconds[True]))
    return measured


def features() -> str:
    """The features of this CPU that matrix products use, by `lscpu`."""
    listed = subprocess.run(["lscpu"], check=True, capture_output=True, text=True).stdout
    words = set(listed.split())
    model = next(line.partition(":")[2].strip() for line in listed.splitlines() if line.startswith("Model name"))
    return f"{model}: {' '.join(f for f in FEATURES if f in words) or 'none of ' + ' '.join(FEATURES)}"


def main() -> None:
    """Measures, prints and writes a JSON and a Markdown file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "two_heads")
    parser.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        pairs = measure(two_heads(Path(directory)), arguments.pairs)
    quotients = sorted(both / one for one, both in pairs)
    text = (
        f"# Two signals of one forward pass\n\n`python -m benchmarks.two_heads`; {machine()}, {features()}; {LAYERS} "
        f"layers of the random Llama in fp32, {ITEMS} HH-like items a round, {len(pairs)} pairs.\n\n"
    )
    medians = [statistics.median(seconds) for seconds in zip(*pairs, strict=True)]
    lines = [
        "| one signal, s | both signals, s | both / one, median of pairs | min | max |",
        "|---|---|---|---|---|",
        f"| {medians[0]:.3f} | {medians[1]:.3f} | {statistics.median(quotients):.3f} | {quotients[0]:.3f} "
        f"| {quotients[-1]:.3f} |",
    ]
    rows = [{"pair": number, "one_s": one, "both_s": both} for number, (one, both) in enumerate(pairs)]
    write(arguments.out, text, lines, rows)


if __name__ == "__main__":
    main()
