"""How reward margins are distributed, whether they are calibrated, and what length has to do with scores."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from assay_training.algorithms.statistics import Floats, moments, outcomes, reliability, spearman
from assay_training.evaluation import plots
from assay_training.evaluation.results import domains, strengths
from assay_training.evaluation.rewards.served import lengths
from assay_training.evaluation.rows import Logits, Rows
from assay_training.evaluation.table import Picture, Table, number, text
from assay_training.records.record import Ranking

COLUMNS = (
    text("source", "source"),
    text("model", "model"),
    text("pairs", "n"),
    number("mean", "mean", ".3f"),
    number("std", "std", ".3f"),
    number("< 0", "share_negative", ".1%"),
    number("skew", "skewness", "+.2f"),
    number("kurtosis", "kurtosis", "+.2f"),
    number("best - worst", "best_minus_worst", ".3f"),
    number("miscalibrated", "calibration_error", ".1%"),
    number("r length", "length_correlation", "+.2f"),
)
NOTES = (
    "Margin: score of the better one minus the other's. Kurtosis: excess, 0 for a normal distribution.",
    "Miscalibrated: mean distance of σ(|margin|) to how often that is right, in ten bins; for Bradley-Terry logits.",
    "r length: Pearson's correlation of score and characters, over completions.",
)


def margins(rankings: Sequence[Ranking], scores: Mapping[str, Logits]) -> Table:
    """A record for every source and model, with a plot of each model's margins and of its calibration.

    Args:
        rankings: what was judged.
        scores: by model, of every completion.

    Raises:
        ValueError: there is no pair.
    """
    if not any(ranking.pairs for ranking in rankings):
        raise ValueError("there are ties alone, and no pair of which one is better")
    rows = Rows.of(rankings, dict(scores))
    long = lengths(rankings)
    sources = np.array([ranking.source for ranking in rankings])
    records: list[dict[str, Any]] = []
    for source, where in {**domains(rows.sources), "all": np.ones(len(rows.sources), dtype=bool)}.items():
        inside = np.isin(sources, rows.sources[where])
        for model, of in scores.items():
            flat = [(value, chars) for i in np.flatnonzero(inside) for value, chars in zip(of[i], long[i], strict=True)]
            records.append({"source": source, "model": model, **_numbers(rows.where(where), model, np.array(flat))})
    pictures = [picture for model in scores for picture in _pictures(rows, model, scores[model], long)]
    return Table("Margins", tuple(records), COLUMNS, notes=NOTES, pictures=tuple(pictures))


def _numbers(rows: Rows, model: str, scored: Floats) -> dict[str, Any]:
    """Of one domain; `scored` is `[completions, 2]`: score and characters."""
    assert rows.extremes is not None
    values = rows.values[model]
    bins = reliability(values)
    extremes = values[rows.extremes]
    varied = np.ptp(scored[:, 0]) > 0 and np.ptp(scored[:, 1]) > 0
    return {
        **asdict(moments(values)),
        "best_minus_worst": float(extremes.mean()) if len(extremes) else None,
        "calibration_error": float(sum(b.n * abs(b.label - b.prediction) for b in bins) / len(values)),
        "calibration": [asdict(b) for b in bins],
        "length_correlation": float(np.corrcoef(scored.T)[0, 1]) if varied else None,
        "length_spearman": spearman(scored[:, 0], scored[:, 1]) if varied else None,
        "accuracy_by_strength": {
            name: float(outcomes(values[mask]).mean()) for name, mask in strengths(rows).items() if mask.any()
        },
    }


def _pictures(rows: Rows, model: str, scores: Logits, long: Logits) -> list[Picture]:
    values = rows.values[model]
    flat = np.array([(v, c) for of, chars in zip(scores, long, strict=True) for v, c in zip(of, chars, strict=True)])
    bins = reliability(values)
    return [
        Picture(f"{model}: reward margins by source.", lambda: plots.margins(rows, model)),
        Picture(
            f"{model}: how often the higher score is right against σ(|margin|).",
            lambda: plots.curve([b.prediction for b in bins], [b.label for b in bins], "σ(|margin|)", "right"),
        ),
        Picture(
            f"{model}: score against characters.",
            lambda: plots.scatter(flat[:, 1], flat[:, 0], "characters", "score"),
        ),
    ]
