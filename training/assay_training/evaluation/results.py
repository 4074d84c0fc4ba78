"""Compute the results of a training run and of its model card from held-out logits and their baselines."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from assay_training.algorithms.statistics import (
    DegenerateSample,
    Estimate,
    Floats,
    bootstrap_clusters,
    compute_auc,
    compute_bucket_errors,
    compute_calibration,
    compute_clustered_mean,
    compute_clustered_share,
    compute_moments,
    compute_outcomes,
    compute_spearman,
)
from assay_training.config.objective import AbsoluteObjective, PreferenceObjective
from assay_training.evaluation.rows import Rows

MODEL, FROZEN, LENGTH = "model", "frozen head", "length"

# Llama-2's four preference strengths ([Llama 2] table 8), by quarters of the scale that a source rates on.
STRENGTHS = {"negligibly better": 0.25, "slightly better": 0.5, "better": 0.75, "significantly better": 1.0}


def compute_results(rows: Rows, objective: PreferenceObjective | AbsoluteObjective, seed: int) -> dict[str, Any]:
    """Return every number by domain: each source, the subsets of each data set together, and for preference all pairs.

    A domain with a single group is skipped, since one group gives no interval for others.

    Args:
        rows: held-out rows of pairs or items, with the model and its baselines as contenders.
        objective: objective of the run, which decides between preference and absolute results.
        seed: seed of the bootstrap of the absolute results.
    """
    parts = {name: rows.of_sources(sources) for name, sources in group_by_domain(rows.all_sources).items()}
    kept = {name: part for name, part in parts.items() if len(np.unique(part.groups)) > 1}
    if isinstance(objective, AbsoluteObjective):
        return {name: compute_absolute_results(part, objective, seed) for name, part in kept.items()}
    return {name: compute_preference_results(part) for name, part in {**kept, "all": rows}.items()}


def compute_preference_results(rows: Rows) -> dict[str, Any]:
    """Return the results of a preference model.

    They are the pairwise accuracy of every contender, the paired difference of the model to each other contender, and
    the moments of the model's margins.

    Args:
        rows: rows of pairs, with their ties.
    """
    assert rows.extremes is not None
    assert rows.ties is not None
    hits = {name: compute_outcomes(margins) for name, margins in rows.values.items()}
    groups = rows.groups
    return {
        "accuracy": _accuracy(hits, groups, np.ones(len(groups), dtype=bool)),
        "best against worst": _accuracy(hits, groups, rows.extremes),
        "by strength": compute_strength_accuracy(rows, hits),
        "difference": {
            name: asdict(compute_clustered_mean(hits[MODEL] - column, groups.tolist()))
            for name, column in hits.items()
            if name != MODEL
        },
        "margins": asdict(compute_moments(rows.values[MODEL])),
        "ties": {
            "n": len(rows.ties.sources),
            "mean |margin|": float(np.abs(rows.ties.values[MODEL]).mean()) if len(rows.ties.sources) else None,
        },
    }


def compute_strength_accuracy(rows: Rows, hits: Mapping[str, Floats]) -> dict[str, Any]:
    """Return the accuracy for each strength of preference, from the pairs whose source gives gaps.

    Args:
        rows: rows of pairs.
        hits: outcomes by contender: 1 for a correct pair, 0 for a wrong one, 0.5 for equal scores; fp64 `[n]`.
    """
    return {
        strength: _accuracy(hits, rows.groups, mask)
        for strength, mask in split_by_strength(rows).items()
        if len(np.unique(rows.groups[mask])) > 1
    }


def split_by_strength(rows: Rows) -> dict[str, NDArray[np.bool_]]:
    """Return the mask of the pairs of each strength of preference, bool `[n]`; a pair without a gap is in none.

    Args:
        rows: rows of pairs.
    """
    assert rows.gaps is not None
    masks, low = {}, -1.0  # a gap of 0 is a negligible preference, so the lowest bound is below 0
    for strength, high in STRENGTHS.items():
        # Gaps are quotients of ratings: rounding must not push 3/4 into the next strength.
        masks[strength] = (rows.gaps > low) & (rows.gaps <= high + 1e-9)
        low = high + 1e-9
    return masks


def compute_absolute_results(rows: Rows, objective: AbsoluteObjective, seed: int) -> dict[str, Any]:
    """Return the results of an absolute model: errors by bucket, calibration and a rank statistic.

    The rank statistic is the AUC where all labels are 0 or 1, otherwise Spearman's correlation. It is `None` where the
    labels or a contender's values are all equal.

    Args:
        rows: rows of labelled items.
        objective: objective of the run, which says whether the model's output is a logit.
        seed: seed of the bootstrap.
    """
    assert rows.labels is not None
    labels = rows.labels
    # The baselines are fitted as logits whatever the model's output is, so errors need their sigmoid.
    qualities = {
        name: column if name == MODEL and not objective.served else expit(column)
        for name, column in rows.values.items()
    }

    return {
        "errors": {name: compute_bucket_errors(labels, column) for name, column in qualities.items()},
        "calibration": [asdict(bin_) for bin_ in compute_calibration(labels, qualities[MODEL])],
        **_estimate_ranks(rows, labels, seed),
    }


def _estimate_ranks(rows: Rows, labels: Floats, seed: int) -> dict[str, Any]:
    """Return the rank statistic of every contender, and the model's difference to each, with their intervals."""
    # AUC is defined for two classes; for qualities between them, ranks are compared.
    groups, is_binary = rows.groups.tolist(), bool(np.isin(labels, (0.0, 1.0)).all())

    def compute_rank(name: str, index: NDArray[np.int64]) -> float:
        column = rows.values[name][index]
        return compute_auc(labels[index] == 1.0, column) if is_binary else compute_spearman(labels[index], column)

    # On the same resampled groups, which removes the variance that both share.
    def compute_difference(name: str, index: NDArray[np.int64]) -> float:
        return compute_rank(MODEL, index) - compute_rank(name, index)

    def estimate_interval(statistic: Callable[[NDArray[np.int64]], float]) -> dict[str, Any] | None:
        try:
            estimate: Estimate = bootstrap_clusters(statistic, groups, seed=seed)
        except DegenerateSample:
            return None
        return asdict(estimate)

    return {
        "statistic": "AUC" if is_binary else "Spearman",
        "rank": {name: estimate_interval(partial(compute_rank, name)) for name in rows.values},
        "difference": {
            name: estimate_interval(partial(compute_difference, name)) for name in rows.values if name != MODEL
        },
    }


def group_by_domain(sources: Collection[str]) -> dict[str, list[str]]:
    """Return the sources of each domain.

    A domain is a source by itself, all subsets of a data set (`NAME (all)`), or its helpful subsets
    (`NAME/helpful (all)`). The last two exist only where they have several sources.

    Args:
        sources: names of sources; those of a data set's subsets are `DATA_SET/SUBSET`.
    """
    # Sorted, so that a report has the same order in every run.
    by_domain = {source: [source] for source in sorted(sources)}
    for data_set in sorted({source.split("/")[0] for source in by_domain}):
        subsets = [source for source in by_domain if source.startswith(f"{data_set}/")]
        helpful = [source for source in subsets if source.startswith(f"{data_set}/helpful")]
        for name, several in ((f"{data_set}/helpful (all)", helpful), (f"{data_set} (all)", subsets)):
            if len(several) > 1:
                by_domain[name] = several
    return by_domain


def iterate_slices(rows: Rows) -> Iterator[tuple[str, str | None, Rows]]:
    """Yield the rows of every domain and of `all`, first as a whole, then for every strength of preference that occurs.

    Args:
        rows: rows of pairs, with their ties.

    Yields:
        The domain, the strength (`None` for the whole domain) and its rows. Only the whole domain has ties.
    """
    parts = {name: rows.of_sources(sources) for name, sources in group_by_domain(rows.all_sources).items()}
    for source, part in {**parts, "all": rows}.items():
        yield source, None, part
        yield from ((source, name, part.where(mask)) for name, mask in split_by_strength(part).items() if mask.any())


def _accuracy(hits: Mapping[str, Floats], groups: NDArray[np.str_], mask: NDArray[np.bool_]) -> dict[str, Any]:
    clusters = groups[mask].tolist()
    if len(set(clusters)) < 2:  # a cluster-robust interval needs two clusters
        return {}
    return {name: asdict(compute_clustered_share(column[mask], clusters)) for name, column in hits.items()}
