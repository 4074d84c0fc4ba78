"""Compute the same items in two kinds of numbers, and measure how far their logits are apart: `assay verify`."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from assay_service.errors import ContentError, StartError
from assay_service.fidelity import Fidelity, Group, Record, identify, measure, write_fidelity
from assay_service.loader import load_resolved
from assay_service.registry import Registry, Signal
from assay_service.resolve import ResolvedSignal
from assay_service.scoring.compute import Number
from assay_service.scoring.item import Item, Message
from assay_service.scoring.layout import TokenSequence
from assay_service.settings import Settings

_KEYS = "`prompt` or `messages`, and `completion`, `completions`, or `chosen` and `rejected`"

# Items that one forward pass computes.
_AT_ONCE = 32


def verify(
    settings: Settings, resolved: Mapping[str, ResolvedSignal], against: Number, path: Path
) -> Iterator[tuple[str, Number, Fidelity, Path]]:
    """Yield for each signal its name, its numbers, its fidelity, and the file that keeps it.

    Args:
        settings: configuration of the signals.
        resolved: resolved signals by name.
        against: numbers in which the reference computes.
        path: JSONL file of prompts with completions.

    Raises:
        StartError: a signal cannot be served, a row is wrong or cannot be scored, or the result cannot be written.
    """
    prompts = read_prompts(path)
    logits = [_score_all(load_resolved(settings, resolved), prompts, path)]
    others = {name: replace(signal, compute=against) for name, signal in resolved.items()}
    logits.append(_score_all(load_resolved(settings, others), prompts, path))
    for name, (signal, compared) in logits[0].items():
        _, reference = logits[1][name]
        groups = [Group(*pair) for pair in zip(reference, compared, strict=True)]
        compute = signal.provenance.compute
        fidelity = measure(groups, against)
        directory = resolved[name].adapter or resolved[name].base
        record = Record(weights=identify(signal.provenance.describe()), compute=compute, fidelity=fidelity)
        yield name, compute, fidelity, write_fidelity(directory, record)


def read_prompts(path: Path) -> list[tuple[Item, ...]]:
    """Return the items of each prompt of a JSONL file.

    Raises:
        StartError: a line is not an object with these keys; the message names the line.
    """
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            prompts.append(_read_row(json.loads(line)))
        except (ValueError, TypeError, KeyError, ContentError) as error:
            raise StartError(f"{path}:{number}: {error}; give each row {_KEYS}") from error
    if not prompts:
        raise StartError(f"{path}: has no rows; give it rows with {_KEYS}")
    return prompts


def _read_row(row: Any) -> tuple[Item, ...]:  # noqa: ANN401 - whatever JSON holds
    """Return the items of one row."""
    if not isinstance(row, dict):
        raise TypeError("is not an object")
    before = row["messages"] if "messages" in row else [{"role": "user", "content": row["prompt"]}]
    messages = tuple(Message(_read_text(message["role"]), _read_text(message["content"])) for message in before)
    completions = row.get("completions") or (
        [row["completion"]] if "completion" in row else [row["chosen"], row["rejected"]]
    )
    return tuple(Item((*messages, Message("assistant", _read_text(text)))) for text in completions)


def _read_text(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _score_all(
    registry: Registry, prompts: Sequence[tuple[Item, ...]], path: Path
) -> dict[str, tuple[Signal, list[tuple[float, ...]]]]:
    """Return each signal with its logits of every prompt's completions."""
    return {name: (signal, list(_score(signal, prompts, path))) for name, signal in registry.signals.items()}


def _score(signal: Signal, prompts: Sequence[tuple[Item, ...]], path: Path) -> Iterator[tuple[float, ...]]:
    """Yield the logits of each prompt's completions."""
    rendered = [_render(signal, items, f"{path}: row {number}") for number, items in enumerate(prompts, start=1)]
    sequences = [sequence for row in rendered for sequence in row]
    logits: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(sequences), _AT_ONCE):
            (rows,) = signal.model.read(sequences[start : start + _AT_ONCE], (signal.name,))
            logits += (
                signal.reading.read(numbers).logit if all(map(math.isfinite, numbers)) else math.nan for numbers in rows
            )
    rest = iter(logits)
    for number, row in enumerate(rendered, start=1):
        found = tuple(islice(rest, len(row)))
        if not all(map(math.isfinite, found)):
            raise StartError(
                f"{path}: row {number}: signal {signal.name}: a logit is not finite; declare `compute: float32`"
            )
        yield found


def _render(signal: Signal, items: Sequence[Item], where: str) -> list[TokenSequence]:
    """Return the sequences of the completions of one prompt."""
    try:
        return [signal.renderer.render(item).sequence for item in items]
    except ContentError as error:
        raise StartError(f"{where}: {error.message}; remove the row") from error
