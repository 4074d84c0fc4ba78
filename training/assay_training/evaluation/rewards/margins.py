"""How reward margins are distributed, whether they are calibrated, and what length has to do with scores."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from assay_training.algorithms.statistics import Floats, moments, outcomes, reliability, spearman
from assay_training.evaluation import plots
from assay_training.evaluation.results import cuts
from assay_training.evaluation.rewards.served import lengths
from assay_training.evaluation.rows import Logits, Rows
from assay_training.evaluation.table import Picture, Table, number, text
from assay_training.records.record import Ranking

COLUMNS = (
    text("source", "source"),
    text("preference", "strength", missing="any"),
    text("model", "model"),
    text("pairs", "n"),
    number("right", "accuracy", ".1%"),
    number("mean", "mean", ".3f"),
    number("std", "std", ".3f", detail=True),
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
    """A record for every source, strength of preference (None for any) and model; plots of margins and calibration.

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
    for source, strength, mask in cuts(rows):
        inside = np.flatnonzero(np.isin(sources, rows.sources[mask]))
        for model, of in scores.items():
            scored = None if strength else np.array([pair for i in inside for pair in zip(of[i], long[i], strict=True)])
            numbers = _margins(rows.where(mask), model) | _of_length(scored)
            records.append({"source": source, "strength": strength, "model": model} | numbers)
    pictures = [picture for model in scores for picture in _pictures(rows, model, scores[model], long)]
    return Table("Margins", tuple(records), COLUMNS, notes=NOTES, pictures=tuple(pictures))


def _margins(rows: Rows, model: str) -> dict[str, Any]:
    assert rows.extremes is not None
    values = rows.values[model]
    bins = reliability(values)
    extremes = values[rows.extremes]
    return {
        **asdict(moments(values)),
        "accuracy": float(outcomes(values).mean()),
        "best_minus_worst": float(extremes.mean()) if len(extremes) else None,
        "calibration_error": float(sum(b.n * abs(b.label - b.prediction) for b in bins) / len(values)),
        "calibration": [asdict(b) for b in bins],
    }


def _of_length(scored: Floats | None) -> dict[str, float | None]:
    """Of score and characters, `[completions, 2]`; None for a strength, which pairs have and completions have not."""
    if scored is None or not (np.ptp(scored, axis=0) > 0).all():
        return {"length_correlation": None, "length_spearman": None}
    return {
        "length_correlation": float(np.corrcoef(scored.T)[0, 1]),
        "length_spearman": spearman(scored[:, 0], scored[:, 1]),
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
