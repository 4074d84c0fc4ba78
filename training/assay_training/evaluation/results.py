"""Logits beside their baselines to the numbers of a run and of its card."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from assay_training.algorithms.statistics import (
    DegenerateSample,
    Estimate,
    Floats,
    auc,
    bootstrap,
    bucket_errors,
    calibration,
    clustered_mean,
    clustered_share,
    moments,
    outcomes,
    spearman,
)
from assay_training.config.objective import AbsoluteObjective, PreferenceObjective
from assay_training.evaluation.rows import Rows

MODEL, FROZEN, LENGTH = "model", "frozen head", "length"

# Llama-2's four preference strengths ([Llama 2] table 8), by quarters of the scale that a source rates on.
STRENGTHS = {"negligibly better": 0.25, "slightly better": 0.5, "better": 0.75, "significantly better": 1.0}


def results(rows: Rows, objective: PreferenceObjective | AbsoluteObjective, seed: int) -> dict[str, Any]:
    """Every number, by domain; a domain is a source, the subsets of one data set or its helpful ones, or all pairs.

    A domain of one group is left out: a single group says nothing about others.
    """
    parts = {name: rows.of_sources(sources) for name, sources in domains(rows.all_sources).items()}
    of = {name: part for name, part in parts.items() if len(np.unique(part.groups)) > 1}
    if isinstance(objective, AbsoluteObjective):
        return {name: absolute_numbers(part, objective, seed) for name, part in of.items()}
    return {name: preference_numbers(part) for name, part in {**of, "all": rows}.items()}


def preference_numbers(rows: Rows) -> dict[str, Any]:
    """Pairwise accuracy of every contender, the paired difference of the model to each other one, and the margins."""
    assert rows.extremes is not None
    assert rows.ties is not None
    hits = {name: outcomes(margins) for name, margins in rows.values.items()}
    groups = rows.groups
    return {
        "accuracy": _accuracy(hits, groups, np.ones(len(groups), dtype=bool)),
        "best against worst": _accuracy(hits, groups, rows.extremes),
        "by strength": by_strength(rows, hits),
        "difference": {
            name: asdict(clustered_mean(hits[MODEL] - column, groups.tolist()))
            for name, column in hits.items()
            if name != MODEL
        },
        "margins": asdict(moments(rows.values[MODEL])),
        "ties": {
            "n": len(rows.ties.sources),
            "mean |margin|": float(np.abs(rows.ties.values[MODEL]).mean()) if len(rows.ties.sources) else None,
        },
    }


def by_strength(rows: Rows, hits: Mapping[str, Floats]) -> dict[str, Any]:
    """Accuracy for each strength of preference, where a source gives gaps."""
    return {
        strength: _accuracy(hits, rows.groups, mask)
        for strength, mask in strengths(rows).items()
        if len(np.unique(rows.groups[mask])) > 1
    }


def strengths(rows: Rows) -> dict[str, NDArray[np.bool_]]:
    """Which pairs are of which strength of preference, where a source gives gaps."""
    assert rows.gaps is not None
    found, low = {}, -1.0  # a gap of 0 is a preference that is negligible
    for strength, high in STRENGTHS.items():
        found[strength] = (rows.gaps > low) & (rows.gaps <= high + 1e-9)
        low = high + 1e-9
    return found


def absolute_numbers(rows: Rows, objective: AbsoluteObjective, seed: int) -> dict[str, Any]:
    """Errors by bucket, calibration, and a rank statistic: AUC where labels are 0 or 1, else Spearman.

    Where labels or a contender's numbers are all equal there is no such statistic: None.
    """
    assert rows.labels is not None
    labels, groups = rows.labels, rows.groups.tolist()
    binary = bool(np.isin(labels, (0.0, 1.0)).all())
    # The other contenders are always fitted as logits.
    qualities = {
        name: column if name == MODEL and not objective.served else expit(column)
        for name, column in rows.values.items()
    }

    def rank(column: Floats, index: NDArray[np.int64]) -> float:
        return auc(labels[index] == 1.0, column[index]) if binary else spearman(labels[index], column[index])

    def of(statistic: Callable[[NDArray[np.int64]], float]) -> dict[str, Any] | None:
        try:
            estimate: Estimate = bootstrap(statistic, groups, seed=seed)
        except DegenerateSample:
            return None
        return asdict(estimate)

    return {
        "errors": {name: bucket_errors(labels, column) for name, column in qualities.items()},
        "calibration": [asdict(bin_) for bin_ in calibration(labels, qualities[MODEL])],
        "statistic": "AUC" if binary else "Spearman",
        "rank": {name: of(lambda index, c=column: rank(c, index)) for name, column in rows.values.items()},  # type: ignore[misc]
        "difference": {
            name: of(lambda index, c=column: rank(rows.values[MODEL], index) - rank(c, index))  # type: ignore[misc]
            for name, column in rows.values.items()
            if name != MODEL
        },
    }


def domains(sources: Collection[str]) -> dict[str, list[str]]:
    """The sources of each domain: itself, those of a data set with several, and its helpful ones."""
    found = {source: [source] for source in sorted(sources)}
    for data_set in sorted({source.split("/")[0] for source in found}):
        subsets = [source for source in found if source.startswith(f"{data_set}/")]
        helpful = [source for source in subsets if source.startswith(f"{data_set}/helpful")]
        for name, several in ((f"{data_set}/helpful (all)", helpful), (f"{data_set} (all)", subsets)):
            if len(several) > 1:
                found[name] = several
    return found


def slices(rows: Rows) -> Iterator[tuple[str, str | None, Rows]]:
    """Of every domain, and of `all`, the rows with their ties (None), then those of every strength that it has."""
    parts = {name: rows.of_sources(sources) for name, sources in domains(rows.all_sources).items()}
    for source, part in {**parts, "all": rows}.items():
        yield source, None, part
        yield from ((source, name, part.where(of)) for name, of in strengths(part).items() if of.any())


def _accuracy(hits: Mapping[str, Floats], groups: NDArray[np.str_], mask: NDArray[np.bool_]) -> dict[str, Any]:
    clusters = groups[mask].tolist()
    if len(set(clusters)) < 2:  # no interval
        return {}
    return {name: asdict(clustered_share(column[mask], clusters)) for name, column in hits.items()}
