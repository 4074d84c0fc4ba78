"""Items per second of the embedded encoder: packed rows against transformers' own ways of running it.

    python -m benchmarks.throughput [--out benchmarks/results/throughput]

All contenders score the same fresh items in one run, alternating, tokenization included; medians of five. The items are
made up, with the lengths of HH dialogues. Only ratios within one run mean anything.
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from assay_service import loader, settings
from assay_service.scoring.files import resolve
from assay_service.scoring.item import Item
from benchmarks.written import describe_machine, format_table, summarize, write

REPEATS = 5
ITEMS = 128
BATCH = 32
WORDS = [
    "the",
    "a",
    "we",
    "you",
    "bread",
    "river",
    "music",
    "how",
    "why",
    "explain",
    "please",
    "help",
    "good",
    "bad",
    "long",
    "small",
    "think",
    "know",
    "make",
    "take",
    "time",
    "people",
]

Scorer = Callable[[list[Item]], object]


def items(seed: int) -> list[Item]:
    """Make prompts and completions with about the lengths of HH helpful-base: 10 to 200 and 5 to 120 words."""
    generator = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(generator.choices(WORDS, k=round(low * (high / low) ** generator.random())))

    return [Item.of(text(10, 200), text(5, 120)) for _ in range(ITEMS)]


def build_contenders() -> dict[str, Scorer]:
    """Build functions that run items through one signal's base and head, or through the bare base."""
    served = loader.load(settings.read_settings(settings.EMBEDDED))
    assert all(served.invariant.values()), "a score that depends on the batch is not worth timing"
    signal = served.signals["preference"]
    base = resolve(signal.provenance.model, None, Path())
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModel.from_pretrained(base).eval()

    def packed(batch: list[Item]) -> None:
        for start in range(0, len(batch), BATCH):
            rows = [signal.renderer.render(item).sequence for item in batch[start : start + BATCH]]
            signal.model.logits(rows, signal.name)

    def padded(batch: list[Item]) -> None:
        for start in range(0, len(batch), BATCH):
            part = batch[start : start + BATCH]
            pairs = ([item.prompt[0].content for item in part], [item.completion for item in part])
            model(**tokenizer(*pairs, padding="longest", truncation=True, max_length=512, return_tensors="pt"))

    def one_by_one(batch: list[Item]) -> None:
        for item in batch:
            model(
                **tokenizer(
                    item.prompt[0].content, item.completion, truncation=True, max_length=512, return_tensors="pt"
                )
            )

    return {
        "assay, packed, with adapter": packed,
        f"transformers, padded {BATCH}": padded,
        "transformers, one by one": one_by_one,
    }


def measure() -> list[dict[str, object]]:
    """Measure medians over `REPEATS` alternating rounds, each on fresh items."""
    scorers = build_contenders()
    rates: dict[str, list[float]] = {name: [] for name in scorers}
    with torch.inference_mode():
        for scorer in scorers.values():
            scorer(items(-1))
        for repeat in range(REPEATS):
            fresh = items(repeat)
            for name, scorer in scorers.items():
                started_s = time.perf_counter()
                scorer(fresh)
                rates[name].append(ITEMS / (time.perf_counter() - started_s))
    ours = next(iter(rates.values()))
    return [
        {"workload": "HH-like items", "contender": name} | summarize(seen, ours, "items/s")
        for name, seen in rates.items()
    ]


def main() -> None:
    """Measure, print, and write a JSON and a Markdown file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "throughput")
    out: Path = parser.parse_args().out
    rows = measure()
    text = f"# Throughput\n\n`make bench`; {describe_machine()}, fp32; {ITEMS} items a round, {REPEATS} rounds.\n\n"
    write(out, text, format_table(rows, {"contender": "contender"}, "ours / it", 1), rows)


if __name__ == "__main__":
    main()
