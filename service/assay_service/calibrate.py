"""Write mean, standard deviation and distribution of a signal's logits on sample texts into its manifest."""

import statistics
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from assay_service.errors import StartError
from assay_service.loader import load_resolved
from assay_service.resolve import ResolvedSignal
from assay_service.sample_scores import read_prompts, score
from assay_service.scoring import manifest
from assay_service.scoring.hashing import hash_files
from assay_service.scoring.manifest import Manifest
from assay_service.scoring.reference import ReferenceHistogram
from assay_service.settings import Settings

# Cells of the distribution, which hold about the same number of logits.
_CELLS = 10
# Fewest logits: ten in each cell. With fewer, another sample of the same texts would look like drift.
FEWEST = 100


def calibrate(
    settings: Settings, resolved: Mapping[str, ResolvedSignal], path: Path
) -> Iterator[tuple[str, float, float, ReferenceHistogram, Path]]:
    """Yield for each signal its name, the mean and standard deviation, the distribution, and the manifest's file.

    All signals are scored before the first manifest is written.

    Args:
        settings: configuration of the signals.
        resolved: resolved signals by name.
        path: JSONL file of prompts with completions.

    Raises:
        StartError: a signal cannot be served or calibrated, a row is wrong or cannot be scored, or a manifest cannot be
            written.
    """
    _check_places(resolved)
    prompts, samples_sha256 = read_prompts(path), hash_files([path])
    measured = {}
    for name, signal in load_resolved(settings, resolved).signals.items():
        logits = [logit for row in score(signal, prompts, path) for logit in row]
        measured[name] = logits, build_reference(logits, samples_sha256, str(path))
    for name, (logits, reference) in measured.items():
        mean, std = statistics.fmean(logits), statistics.stdev(logits)
        yield name, mean, std, reference, _record(resolved[name], mean, std, reference)


def build_reference(logits: Sequence[float], samples_sha256: str, source: str) -> ReferenceHistogram:
    """Return the distribution of logits, whose borders are their deciles.

    Args:
        logits: finite logits.
        samples_sha256: SHA-256 of the file with the sample texts.
        source: name of the file, for errors.

    Raises:
        StartError: there are fewer than `FEWEST` logits, or so many are equal that two deciles are.
    """
    if len(logits) < FEWEST:
        raise StartError(
            f"{source}: has {len(logits)} completions, too few for a distribution that chance does not shift; give at "
            f"least {FEWEST}"
        )
    edges = statistics.quantiles(logits, n=_CELLS, method="inclusive")
    if len(set(edges)) < len(edges):
        raise StartError(
            f"{source}: only {len(set(logits))} of the {len(logits)} logits differ, too few to compare or standardise "
            "with; give texts that differ more"
        )
    counts = [0] * (len(edges) + 1)
    for logit in logits:
        counts[bisect_right(edges, logit)] += 1
    return ReferenceHistogram(
        edges=tuple(edges), counts=tuple(counts), samples=len(logits), samples_sha256=samples_sha256
    )


def _check_places(resolved: Mapping[str, ResolvedSignal]) -> None:
    """Refuse two signals that would write the same part of a manifest."""
    owners: dict[tuple[Path, int | None], str] = {}
    for name, signal in resolved.items():
        place = _find_place(signal)
        if place in owners:
            raise StartError(
                f"signals.{name}: has the same place in {place[0] / manifest.FILE_NAME} as signal {owners[place]}; "
                "give a configuration with one of them"
            )
        owners[place] = name


def _find_place(signal: ResolvedSignal) -> tuple[Path, int | None]:
    """Return the directory of a signal's manifest, and the output there; None in a manifest without outputs."""
    directory = signal.adapter or signal.base
    return directory, signal.head.outputs[0] if signal.claims.outputs else None


def _record(signal: ResolvedSignal, mean: float, std: float, reference: ReferenceHistogram) -> Path:
    """Write what was measured into the manifest of a signal, and return the file."""
    directory, output = _find_place(signal)
    known, update = manifest.read(directory), {"mean": mean, "std": std, "reference": reference}
    path = directory / manifest.FILE_NAME
    if not path.is_file():
        # A manifest without the key means `zero`, which nobody has declared for this checkpoint.
        known = Manifest(token_types=signal.rules.token_types)
    if output is not None:
        own = known.outputs[output].model_copy(update=update)
        update = {"outputs": (*known.outputs[:output], own, *known.outputs[output + 1 :])}
    try:
        manifest.write(known.model_copy(update=update), directory)
    except OSError as error:
        raise StartError(f"{path}: cannot be written: {error}; copy the checkpoint to a writable directory") from error
    return path
