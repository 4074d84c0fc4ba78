"""How often served rewards agree with judges or people, beside the length of what was judged."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.inter_rater import cohens_kappa

from assay_training.algorithms.statistics import Floats, bootstrap, clustered_share, interval_bounds, outcomes
from assay_training.evaluation import plots
from assay_training.evaluation.results import LENGTH, slices
from assay_training.evaluation.rewards.served import lengths
from assay_training.evaluation.rows import Logits, Rows
from assay_training.evaluation.table import Picture, Table, cut, interval, number, text, whole
from assay_training.records.record import Ranking

FEW = 10  # clusters, of which resampling tells too little
COLUMNS = (
    cut("source"),
    text("model", "model"),
    whole("pairs", "n"),
    number("agrees", "accuracy", ".1%"),
    interval("95 %", "ci95", ".1%"),
    number("kappa", "kappa", ".2f"),
    number("less\nlength", "difference", "+.1%"),
    interval("95 %", "difference95", "+.1%", detail=True),
    whole("ties", "ties"),
)
NOTES = (
    "Agrees: the better one has the higher score, over pairs that are no ties; equal scores are half. 95 %: by prompt.",
    "A line with … is of the pairs of the source above it whose preference is that strong.",
    "Kappa: Cohen's, over which of the two is better. Less length: the difference to preferring the longer one.",
)


def agreement(rankings: Sequence[Ranking], scores: Mapping[str, Logits], *, seed: int = 0) -> Table:
    """A record for every source, strength of preference (None for any) and model, and for the length.

    Args:
        rankings: what was judged; the order of completions says nothing of their ranks.
        scores: by model, of every completion.
        seed: of the bootstrap.
    """
    rows = Rows.of(rankings, {**scores, LENGTH: lengths(rankings)})
    records = [record for source, strength, part in slices(rows) for record in _records(part, source, strength, seed)]
    notes = (*NOTES, *_compared(records, list(scores)), *_few(records))
    return Table("Agreement", tuple(records), COLUMNS, notes=notes, pictures=(_picture(records),))


def _records(rows: Rows, source: str, strength: str | None, seed: int) -> list[dict[str, Any]]:
    assert rows.firsts is not None
    groups = rows.groups.tolist()
    hits = {name: outcomes(margins) for name, margins in rows.values.items()}
    records = []
    versus = _differences(hits, groups, seed)
    for name, hit in hits.items():
        less_length = versus[name].get(LENGTH, {"difference": None, "ci95": None})
        records.append(
            {
                "source": source,
                "strength": strength,
                "model": name,
                "n": len(hit),
                "groups": len(set(groups)),
                "accuracy": float(hit.mean()) if len(hit) else None,
                "ci95": interval_bounds(clustered_share, hit, groups),
                "kappa": kappa(rows.firsts, rows.values[name]),
                "difference": less_length["difference"],
                "difference95": less_length["ci95"],
                "versus": versus[name],
                "ties": None if rows.ties is None else len(rows.ties.sources),
                "tied_margin": _tied(rows, name),
            }
        )
    return records


def kappa(first: NDArray[np.bool_], margins: Floats) -> float | None:
    """Cohen's kappa of judge and model on which of two completions is better; None where both always say the same.

    Args:
        first: whether the judge preferred the one that stands first, `[n]`.
        margins: the model's score of the preferred one minus the other's, `[n]`; zeros are left out.
    """
    decided = margins != 0
    model = first == (margins > 0)
    table = [[int((decided & (first == a) & (model == b)).sum()) for b in (True, False)] for a in (True, False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0/0 where there is one category: no number, and told so
        value = float(cohens_kappa(table, return_results=False)) if decided.any() else np.nan
    return None if np.isnan(value) else value


def _mean_of(values: Floats) -> Callable[[NDArray[np.int64]], float]:
    return lambda rows: float(values[rows].mean())


def _tied(rows: Rows, name: str) -> float | None:
    if rows.ties is None or not len(rows.ties.sources):
        return None
    return float(np.abs(rows.ties.values[name]).mean())


def _differences(hits: Mapping[str, Floats], groups: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """How much more often each one agrees than each other, on the same pairs, by paired bootstrap over prompts."""
    found: dict[str, dict[str, Any]] = {name: {} for name in hits}
    for a, b in combinations(hits, 2):
        apart = hits[a] - hits[b]
        if not len(apart):
            found[a][b] = found[b][a] = {"difference": None, "ci95": None}
            continue
        low_high = None
        if len(set(groups)) > 1:
            estimate = bootstrap(_mean_of(apart), groups, seed=seed)
            low_high = (estimate.low, estimate.high)
        mean = float(apart.mean())
        found[a][b] = {"difference": mean, "ci95": None if low_high is None else list(low_high)}
        found[b][a] = {"difference": -mean, "ci95": None if low_high is None else [-low_high[1], -low_high[0]]}
    return found


def _picture(records: Sequence[Mapping[str, Any]]) -> Picture:
    rows = [
        (f"{record['model']}, {record['source']}", record["accuracy"], *(record["ci95"] or [record["accuracy"]] * 2))
        for record in records
        if record["strength"] is None and record["accuracy"] is not None
    ]
    return Picture("How often each agrees, by source.", lambda: plots.intervals(rows, "agrees", 0.5))


def _compared(records: Sequence[Mapping[str, Any]], models: Sequence[str]) -> list[str]:
    """What is told of every two models, over all pairs."""
    every = {r["model"]: r["versus"] for r in records if (r["source"], r["strength"]) == ("all", None)}
    told = []
    for a, b in combinations(models, 2):
        found = every.get(a, {}).get(b)
        if found is not None and found["ci95"] is not None:
            low, high = found["ci95"]
            told.append(f"{a} less {b}, paired bootstrap: {found['difference']:+.1%} ({low:+.1%} to {high:+.1%}).")
    return told


def _few(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the bootstrap had too few prompts to draw from."""
    few = list(dict.fromkeys(r["source"] for r in records if r["strength"] is None and 1 < r["groups"] < FEW))
    if not few:
        return []
    return [f"Fewer than {FEW} prompts, so that intervals of differences are too narrow: {', '.join(few)}."]
