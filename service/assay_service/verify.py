"""Compute the same items in two kinds of numbers, and measure how far their logits are apart: `assay verify`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from assay_service.fidelity import Fidelity, Group, Record, identify, measure, write_fidelity
from assay_service.loader import load_resolved
from assay_service.registry import Registry, Signal
from assay_service.resolve import ResolvedSignal
from assay_service.sample_scores import read_prompts, score
from assay_service.scoring.compute import Number
from assay_service.scoring.item import Item
from assay_service.settings import Settings


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


def _score_all(
    registry: Registry, prompts: Sequence[tuple[Item, ...]], path: Path
) -> dict[str, tuple[Signal, list[tuple[float, ...]]]]:
    """Return each signal with its logits of every prompt's completions."""
    return {name: (signal, list(score(signal, prompts, path))) for name, signal in registry.signals.items()}
