"""How reward margins are distributed, whether they are calibrated, and what length has to do with scores."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from assay_training.algorithms.statistics import Floats, moments, outcomes, reliability, spearman
from assay_training.evaluation import plots
from assay_training.evaluation.results import slices
from assay_training.evaluation.rewards.served import lengths
from assay_training.evaluation.rows import Logits, Rows
from assay_training.evaluation.table import Picture, Table, cut, number, text, whole
from assay_training.records.record import Ranking

COLUMNS = (
    cut("source"),
    text("model", "model"),
    whole("pairs", "n"),
    number("right", "accuracy", ".1%"),
    number("mean", "mean", ".3f"),
    number("std", "std", ".3f", detail=True),
    number("< 0", "share_negative", ".1%", detail=True),
    number("skew", "skewness", "+.2f"),
    number("kurt.", "kurtosis", "+.2f"),
    number("best - worst", "best_minus_worst", ".3f", detail=True),
    number("calib.\nerror", "calibration_error", ".1%"),
    number("r\nlength", "length_correlation", "+.2f"),
    number("mean score", "mean_score", ".3f", detail=True),
    number("std score", "std_score", ".3f", detail=True),
)
NOTES = (
    "Margin: score of the better one minus the other's. Kurt.: excess kurtosis, 0 for a normal distribution.",
    "Calib. error: mean distance of σ(|margin|) to how often that is right, in ten bins; for Bradley-Terry logits.",
    "r length: Pearson's correlation of score and characters, over completions; mean score: over the same.",
    "A line with … is of the pairs of the source above it whose preference is that strong.",
)


def margins(rankings: Sequence[Ranking], scores: Mapping[str, Logits]) -> Table:
    """A record for every source, strength of preference (None for any) and model; plots of margins and calibration.

    Args:
        rankings: what was judged.
        scores: by model, of every completion.
    """
    rows = Rows.of(rankings, dict(scores))
    long = lengths(rankings)
    sources = np.array([ranking.source for ranking in rankings])
    records: list[dict[str, Any]] = []
    for source, strength, part in slices(rows):
        inside = np.flatnonzero(np.isin(sources, list(part.all_sources)))
        for model, of in scores.items():
            scored = None if strength else np.array([pair for i in inside for pair in zip(of[i], long[i], strict=True)])
            numbers = _margins(part, model) | _of_scores(scored)
            records.append({"source": source, "strength": strength, "model": model} | numbers)
    pictures = [picture for model in scores for picture in _pictures(rows, model, scores[model], long)]
    return Table("Margins", tuple(records), COLUMNS, notes=NOTES, pictures=tuple(pictures))


def _margins(rows: Rows, model: str) -> dict[str, Any]:
    assert rows.extremes is not None
    values = rows.values[model]
    bins = reliability(values)
    extremes = values[rows.extremes]
    error = sum(b.n * abs(b.label - b.prediction) for b in bins)
    return {
        **asdict(moments(values)),
        "accuracy": float(outcomes(values).mean()) if len(values) else None,
        "best_minus_worst": float(extremes.mean()) if len(extremes) else None,
        "calibration_error": float(error / len(values)) if len(values) else None,
        "calibration": [asdict(b) for b in bins],
    }


def _of_scores(scored: Floats | None) -> dict[str, float | None]:
    """Of score and characters, `[completions, 2]`; None for a strength, which pairs have and completions have not."""
    if scored is None:
        return dict.fromkeys(("mean_score", "std_score", "length_correlation", "length_spearman"))
    differ = bool((np.ptp(scored, axis=0) > 0).all())
    return {
        "mean_score": float(scored[:, 0].mean()),
        "std_score": float(scored[:, 0].std(ddof=1)),
        "length_correlation": float(np.corrcoef(scored.T)[0, 1]) if differ else None,
        "length_spearman": spearman(scored[:, 0], scored[:, 1]) if differ else None,
    }


def _pictures(rows: Rows, model: str, scores: Logits, long: Logits) -> list[Picture]:
    values = rows.values[model]
    flat = np.array([(v, c) for of, chars in zip(scores, long, strict=True) for v, c in zip(of, chars, strict=True)])
    bins = reliability(values)
    of_pairs = [
        Picture(f"{model}: reward margins by source.", lambda: plots.margins(rows, model)),
        Picture(
            f"{model}: how often the higher score is right against σ(|margin|).",
            lambda: plots.curve([b.prediction for b in bins], [b.label for b in bins], "σ(|margin|)", "right"),
        ),
    ]
    of_scores = Picture(
        f"{model}: score against characters.",
        lambda: plots.scatter(flat[:, 1], flat[:, 0], "characters", "score"),
    )
    return [*of_pairs, of_scores] if len(values) else [of_scores]
