"""Measure how often served rewards agree with judges or people, with output length as the baseline."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.inter_rater import cohens_kappa

from assay_training.algorithms.statistics import (
    Floats,
    bootstrap_clusters,
    compute_clustered_share,
    compute_interval_bounds,
    compute_outcomes,
)
from assay_training.evaluation import plots
from assay_training.evaluation.results import LENGTH, iterate_slices
from assay_training.evaluation.rewards.scores import measure_lengths
from assay_training.evaluation.rows import Logits, Rows
from assay_training.evaluation.table import (
    Picture,
    Table,
    integer_column,
    interval_column,
    number_column,
    source_column,
    text_column,
)
from assay_training.records.record import Ranking

FEW = 10  # prompts; a bootstrap over fewer clusters gives intervals that are too narrow
COLUMNS = (
    source_column("source"),
    text_column("model", "model"),
    integer_column("pairs", "n"),
    number_column("agrees", "accuracy", ".1%"),
    interval_column("95 %", "ci95", ".1%"),
    number_column("kappa", "kappa", ".2f"),
    number_column("over\nlength", "difference", "+.1%"),
    interval_column("95 %", "difference95", "+.1%", detail=True),
    integer_column("ties", "ties"),
)
NOTES = (
    "Agrees: the share of pairs, without ties, whose preferred completion has the higher score.",
    "An equal score counts one half. 95 %: confidence interval, clustered by prompt.",
    "Kappa: Cohen's kappa, on which of the two completions is better.",
    "Over length: the agreement minus that of always choosing the longer completion.",
    "A line that begins with … shows the pairs of the source above it with that strength of preference.",
)


def tabulate_agreement(rankings: Sequence[Ranking], scores: Mapping[str, Logits], *, seed: int = 0) -> Table:
    """Return a table with a record for every source, strength of preference and model, and for the length.

    A record over all strengths has the `strength` `None`.

    Args:
        rankings: judged completions, in an order that does not depend on their ranks.
        scores: scores by model, `[ranking][completion]`, as logits.
        seed: seed of the bootstrap.
    """
    rows = Rows.of(rankings, {**scores, LENGTH: measure_lengths(rankings)})
    records = [
        record
        for source, strength, part in iterate_slices(rows)
        for record in _build_records(part, source, strength, seed)
    ]
    notes = (*NOTES, *_describe_differences(records, list(scores)), *_warn_of_few_prompts(records))
    return Table("Agreement", tuple(records), COLUMNS, notes=notes, pictures=(_build_picture(records),))


def _build_records(rows: Rows, source: str, strength: str | None, seed: int) -> list[dict[str, Any]]:
    assert rows.firsts is not None
    groups = rows.groups.tolist()
    hits = {name: compute_outcomes(margins) for name, margins in rows.values.items()}
    records = []
    versus = _compute_differences(hits, groups, seed)
    for name, hit in hits.items():
        over_length = versus[name].get(LENGTH, {"difference": None, "ci95": None})
        records.append(
            {
                "source": source,
                "strength": strength,
                "model": name,
                "n": len(hit),
                "groups": len(set(groups)),
                "accuracy": float(hit.mean()) if len(hit) else None,
                "ci95": compute_interval_bounds(compute_clustered_share, hit, groups),
                "kappa": compute_kappa(rows.firsts, rows.values[name]),
                "difference": over_length["difference"],
                "difference95": over_length["ci95"],
                "versus": versus[name],
                "ties": None if rows.ties is None else len(rows.ties.sources),
                "tied_margin": _compute_tied_margin(rows, name),
            }
        )
    return records


def compute_kappa(first: NDArray[np.bool_], margins: Floats) -> float | None:
    """Return Cohen's kappa of judge and model on which of two completions is better.

    It is `None` where judge and model always choose the same place, or all margins are 0.

    Args:
        first: whether the judge preferred the completion that stands first, bool `[n]`.
        margins: score of the preferred completion minus that of the other, fp64 `[n]`; pairs with 0 are dropped.
    """
    decided = margins != 0
    model = first == (margins > 0)
    # Pairs with equal scores are not a choice of the model, and kappa has no category for them.
    table = [[int((decided & (first == a) & (model == b)).sum()) for b in (True, False)] for a in (True, False)]
    with warnings.catch_warnings():
        # With one category kappa is 0/0. The result is `None`, so the warning says nothing new.
        warnings.simplefilter("ignore", RuntimeWarning)
        value = float(cohens_kappa(table, return_results=False)) if decided.any() else np.nan
    return None if np.isnan(value) else value


def _make_mean(values: Floats) -> Callable[[NDArray[np.int64]], float]:
    """Return the function from the indices of some rows, int64 `[m]`, to their mean value."""
    return lambda rows: float(values[rows].mean())


def _compute_tied_margin(rows: Rows, name: str) -> float | None:
    """Return the mean absolute margin of the ties, or `None` if there are none."""
    if rows.ties is None or not len(rows.ties.sources):
        return None
    return float(np.abs(rows.ties.values[name]).mean())


def _compute_differences(hits: Mapping[str, Floats], groups: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """Return, for every two contenders, how much more often one agrees, with a paired bootstrap over prompts.

    Args:
        hits: outcomes by contender: 1 for agreement, 0 for disagreement, 0.5 for equal scores; fp64 `[n]`.
        groups: prompt of each pair, `[n]`.
        seed: seed of the bootstrap.
    """
    # Paired, as both contenders see the same pairs: the difference varies less than two separate estimates.
    differences: dict[str, dict[str, Any]] = {name: {} for name in hits}
    for a, b in combinations(hits, 2):
        by_pair = hits[a] - hits[b]
        if not len(by_pair):
            differences[a][b] = differences[b][a] = {"difference": None, "ci95": None}
            continue
        bounds = None
        # A single cluster has no spread to resample.
        if len(set(groups)) > 1:
            estimate = bootstrap_clusters(_make_mean(by_pair), groups, seed=seed)
            bounds = (estimate.low, estimate.high)
        mean = float(by_pair.mean())
        differences[a][b] = {"difference": mean, "ci95": None if bounds is None else list(bounds)}
        # Negated instead of drawn again, so that both directions agree exactly.
        differences[b][a] = {"difference": -mean, "ci95": None if bounds is None else [-bounds[1], -bounds[0]]}
    return differences


def _build_picture(records: Sequence[Mapping[str, Any]]) -> Picture:
    # Without an interval, as for a single prompt, the bar has the length 0.
    rows = [
        (f"{record['model']}, {record['source']}", record["accuracy"], *(record["ci95"] or [record["accuracy"]] * 2))
        for record in records
        if record["strength"] is None and record["accuracy"] is not None
    ]
    return Picture(
        "Agreement with the judges by model and source, with 95 % intervals.",
        lambda: plots.draw_intervals(rows, "agreement", 0.5),
    )


def _describe_differences(records: Sequence[Mapping[str, Any]], models: Sequence[str]) -> list[str]:
    """Return a note on the difference of every two models over all pairs."""
    overall = {r["model"]: r["versus"] for r in records if (r["source"], r["strength"]) == ("all", None)}
    notes = []
    for a, b in combinations(models, 2):
        versus = overall.get(a, {}).get(b)
        if versus is not None and versus["ci95"] is not None:
            low, high = versus["ci95"]
            notes.append(f"{a} minus {b}, paired bootstrap: {versus['difference']:+.1%} ({low:+.1%} to {high:+.1%}).")
    return notes


def _warn_of_few_prompts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a note on the sources with too few prompts for the bootstrap, if there are any."""
    few = list(dict.fromkeys(r["source"] for r in records if r["strength"] is None and 1 < r["groups"] < FEW))
    if not few:
        return []
    return [f"Fewer than {FEW} prompts, so that the intervals of differences are too narrow: {', '.join(few)}."]
