"""Measure how fast the client reads answers: its own decoder against one that is built on msgspec.

    python -m benchmarks.decode [--out benchmarks/results/decode]

Needs msgspec in the version of constraints.txt. Both decoders read the same bytes in one run, in alternating order, and
return equal results, which is checked before the clock starts. Only ratios within one run mean anything.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import GenericAlias, NoneType
from typing import Annotated, Any, Literal, get_args

import msgspec
import torch
from msgspec.structs import astuple

from assay_client import types as t
from assay_client._answers import parse_score
from assay_client.errors import InvalidAnswer
from benchmarks.written import machine, spread, table, write

ROUNDS = 31
SIZES = (64, 1000)  # the client's default chunk, and a call that a user sends whole
COUNT = Annotated[int, msgspec.Meta(ge=0)]

Decoder = Callable[[bytes, Sequence[str | None], int], t.ScoreResult]


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
    signal = {"model": "base", "revision": "d" * 40, "dtype": "float32", **hashes}
    blend = {"name": "crs", "weights": {"preference": 0.5, "absolute": 0.5}, "standardise": "none"}
    provenance = {
        "blend": blend,
        "signals": {"preference": signal, "absolute": signal},
        "fingerprint": "f" * 64,
    }
    head = {"id": "score-1", "object": "list", "created": 1, "model": "crs"}
    return json.dumps({**head, "data": rows, "provenance": provenance}).encode()


def build_struct(kind: type, **hints: object) -> Any:  # noqa: ANN401  # a class that exists only at run time
    """Return the struct that reads a dataclass of the client.

    Its ints are counts, and a field that may be None may also be missing. `hints` replace the types of some fields,
    or add fields.

    The client's dataclasses cannot be read directly: msgspec demands every field that has no default, and the service
    sends no `id`, `prob` or `blend` where it has none.
    """
    types = {field.name: COUNT if field.type is int else field.type for field in fields(kind)} | hints
    rows = [(name, hint, None) if NoneType in get_args(hint) else (name, hint) for name, hint in types.items()]
    return msgspec.defstruct(kind.__name__, rows, kw_only=True)


@cache
def build_decoder() -> Any:  # noqa: ANN401  # msgspec may be missing where types are checked
    """Return msgspec's decoder of answers to `score`."""
    signals = GenericAlias(dict, (str, build_struct(t.SignalValue)))
    error = build_struct(t.ItemError)
    # A row has either a score or an error, so that msgspec can demand neither.
    row = build_struct(t.Score, index=int, error=error | None, score=float | None, signals=signals | None)
    sources = GenericAlias(dict, (str, build_struct(t.SignalProvenance)))
    provenance = build_struct(t.Provenance, blend=build_struct(t.Blend) | None, signals=sources)
    data = GenericAlias(list, (row,))
    answer = build_struct(t.ScoreResult, object=Literal["list"], data=data, provenance=provenance)
    return msgspec.json.Decoder(answer)


def parse_with_msgspec(body: bytes, ids: Sequence[str | None], offset: int) -> t.ScoreResult:
    """Read an answer as `parse_score` does: msgspec checks the fields, Python checks the rows against the request.

    Raises:
        InvalidAnswer: not exactly one row per item, or a row that breaks the wire.
    """
    try:
        answer = build_decoder().decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidAnswer(str(error)) from error
    rows = (_convert_row(row, ids, offset, f"data[{n}]") for n, row in enumerate(answer.data))
    data = tuple(sorted(rows, key=lambda row: row.index))
    if [row.index for row in data] != list(range(offset, offset + len(ids))):
        raise InvalidAnswer(f"data: {len(data)} rows, and not one for each of {len(ids)} items")
    source = answer.provenance
    blend = None if source.blend is None else t.Blend(*astuple(source.blend))
    signals = {name: t.SignalProvenance(*astuple(each)) for name, each in source.signals.items()}
    return t.ScoreResult(data, answer.model, t.Provenance(blend, signals, source.fingerprint))


def _convert_row(
    row: Any,  # noqa: ANN401  # a struct of `build_struct`
    ids: Sequence[str | None],
    offset: int,
    where: str,
) -> t.Score | t.ScoreFailure:
    """Return the client's value of one row; `where` is the row's place in error messages."""
    if not 0 <= row.index < len(ids) or row.id != ids[row.index]:
        raise InvalidAnswer(f"{where}: the row is not about an item that was sent")
    if row.error is not None:
        if row.score is not None:
            raise InvalidAnswer(f"{where}: both a score and an error")
        return t.ScoreFailure(row.index + offset, row.id, t.ItemError(*astuple(row.error)))
    if row.score is None or row.signals is None:
        raise InvalidAnswer(f"{where}: the score or its signals are missing")
    signals = {name: t.SignalValue(*astuple(signal)) for name, signal in row.signals.items()}
    return t.Score(row.index + offset, row.id, row.score, signals)


def measure(decoders: Mapping[str, Decoder]) -> list[dict[str, object]]:
    """Return one row per size and decoder: the median and the ends of its items per second over all rounds.

    Raises:
        AssertionError: the decoders return different results.
    """
    results: list[dict[str, object]] = []
    for items in SIZES:
        body, ids = build_answer(items), [f"item-{index}" for index in range(items)]
        first, *others = (decode(body, ids, 0) for decode in decoders.values())
        assert all(other == first for other in others), "the decoders disagree"
        rates: dict[str, list[float]] = {name: [] for name in decoders}
        for round_number in range(ROUNDS):
            order = list(decoders)
            # The order alternates, so that neither decoder always runs with warm caches.
            for name in order if round_number % 2 else reversed(order):
                started_s = time.perf_counter()
                decoders[name](body, ids, 0)
                rates[name].append(items / (time.perf_counter() - started_s))
        ours = next(iter(rates.values()))
        results += [{"items": items, "decoder": name} | spread(seen, ours, "items/s") for name, seen in rates.items()]
    return results


def main() -> None:
    """Measure, print, and write a JSON and a Markdown file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decode")
    out: Path = parser.parse_args().out
    versions = f"msgspec {msgspec.__version__}"
    rows = measure({"assay_client": parse_score, versions: parse_with_msgspec})
    text = (
        f"# Decoding answers\n\n`python -m benchmarks.decode`; {machine()}, {torch.backends.cpu.get_cpu_capability()}; "
        f"{versions}; answers about {' and '.join(map(str, SIZES))} items under two signals, {ROUNDS} alternating "
        "rounds.\nThe time covers everything from the bytes to the client's checked values.\n\n"
    )
    write(out, text, table(rows, {"items in the answer": "items", "decoder": "decoder"}, "ours / it", 0), rows)


if __name__ == "__main__":
    main()
