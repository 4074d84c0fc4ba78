"""Measure how fast the client reads answers, beside other readers of the same bytes.

    python -m benchmarks.decode [--out benchmarks/results/decode]

`json.loads` checks no field, so that it shows what reading JSON alone costs. pydantic checks the service's own models
of answers, with strict types. All readers run in one process, in alternating order, and must return equal scores before
the clock starts. Only ratios within one run mean anything.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pydantic
import torch

from assay_client._answers import parse_score
from assay_service.api.answers import ScoreAnswer, ScoredRow
from benchmarks.written import describe_machine, format_table, summarize, write

ROUNDS = 31
SIZES = (64, 1000)  # the client's default chunk, and a call that a user sends whole

Reader = Callable[[bytes, int], list[float]]


def build_answer(items: int) -> bytes:
    """Return the service's answer about `items` items under two signals, as JSON."""
    counts = ("prompt_tokens", "completion_tokens", "truncated_tokens", "dropped_tokens", "control_tokens_as_text")
    tokens = dict(zip(counts, (117, 62, 0, 0, 0), strict=True))
    rows = [
        {
            "index": index,
            "id": f"item-{index}",
            "score": 0.8123456789 + index / 997,
            "signals": {
                "preference": {"logit": 1.8765432101 + index / 997, **tokens},
                "absolute": {"logit": -0.2518518523, "prob": 0.43736787, **tokens},
            },
        }
        for index in range(items)
    ]
    hashes = {"adapter_sha256": "a" * 64, "head_sha256": "b" * 64, "template_sha256": "c" * 64}
    signal = {"model": "base", "revision": "d" * 40, "dtype": "float32", "compute": "float32", **hashes}
    blend = {"name": "crs", "weights": {"preference": 0.5, "absolute": 0.5}, "standardise": "none"}
    provenance = {
        "blend": blend,
        "signals": {"preference": signal, "absolute": signal},
        "fingerprint": "f" * 64,
    }
    head = {"id": "score-1", "object": "list", "created": 1, "model": "crs"}
    return json.dumps({**head, "data": rows, "provenance": provenance}).encode()


def read_with_client(body: bytes, items: int) -> list[float]:
    """Return the scores of an answer about `items` items, read by the client."""
    return parse_score(body, [f"item-{index}" for index in range(items)], range(items)).scores()


def read_with_json(body: bytes, items: int) -> list[float]:
    """Return the scores of an answer, of which nothing is checked."""
    return [row["score"] for row in json.loads(body)["data"]]


def read_with_pydantic(body: bytes, items: int) -> list[float]:
    """Return the scores of an answer, whose fields are checked, but not whether they belong to the request."""
    rows = ScoreAnswer.model_validate_json(body, strict=True).data
    return [row.score for row in rows if isinstance(row, ScoredRow)]


def measure(readers: Mapping[str, Reader]) -> list[dict[str, object]]:
    """Return one row per size and reader: the median and the ends of its items per second over all rounds.

    Raises:
        AssertionError: the readers return different scores.
    """
    results: list[dict[str, object]] = []
    for items in SIZES:
        body = build_answer(items)
        first, *others = (read(body, items) for read in readers.values())
        assert len(first) == items, "a score is missing"
        assert all(other == first for other in others), "the readers disagree"
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for round_number in range(ROUNDS):
            order = list(readers)
            # The order alternates, so that no reader always runs with warm caches.
            for name in order if round_number % 2 else reversed(order):
                started_s = time.perf_counter()
                readers[name](body, items)
                rates[name].append(items / (time.perf_counter() - started_s))
        ours = next(iter(rates.values()))
        results += [{"items": items, "reader": name} | summarize(seen, ours, "items/s") for name, seen in rates.items()]
    return results


def main() -> None:
    """Measure, print, and write a JSON and a Markdown file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decode")
    out: Path = parser.parse_args().out
    strict = f"pydantic {pydantic.VERSION}, strict"
    rows = measure(
        {"assay_client": read_with_client, "json.loads, unchecked": read_with_json, strict: read_with_pydantic}
    )
    text = (
        f"# Decoding answers\n\n`python -m benchmarks.decode`; {describe_machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}; msgspec {msgspec.__version__}; answers about "
        f"{' and '.join(map(str, SIZES))} items under two signals, "
        f"{ROUNDS} alternating rounds.\nThe time covers everything from the bytes to the list of scores. The client "
        "also checks that the rows are those of the request.\n\n"
    )
    write(out, text, format_table(rows, {"items in the answer": "items", "reader": "reader"}, "ours / it", 0), rows)


if __name__ == "__main__":
    main()
