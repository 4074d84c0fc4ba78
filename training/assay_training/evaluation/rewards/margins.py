"""Measure how reward margins are distributed, how well they are calibrated, and how scores depend on length."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from assay_training.algorithms.statistics import (
    Floats,
    compute_moments,
    compute_outcomes,
    compute_reliability,
    compute_spearman,
)
from assay_training.evaluation import plots
from assay_training.evaluation.results import iterate_slices
from assay_training.evaluation.rewards.scores import measure_lengths
from assay_training.evaluation.rows import Logits, Rows
from assay_training.evaluation.table import (
    Picture,
    Table,
    integer_column,
    number_column,
    source_column,
    text_column,
)
from assay_training.records.record import Ranking

COLUMNS = (
    source_column("source"),
    text_column("model", "model"),
    integer_column("pairs", "n"),
    number_column("acc.", "accuracy", ".1%"),
    number_column("mean", "mean", ".3f"),
    number_column("std", "std", ".3f", detail=True),
    number_column("negative", "share_negative", ".1%", detail=True),
    number_column("skew", "skewness", "+.2f"),
    number_column("kurt.", "kurtosis", "+.2f"),
    number_column("best - worst", "best_minus_worst", ".3f", detail=True),
    number_column("calib.\nerror", "calibration_error", ".1%"),
    number_column("r\nlength", "length_correlation", "+.2f"),
    number_column("mean score", "mean_score", ".3f", detail=True),
    number_column("std score", "std_score", ".3f", detail=True),
)
NOTES = (
    "Margin: score of the preferred completion minus that of the other.",
    "Acc.: accuracy, the share of pairs with a positive margin; a margin of 0 counts one half.",
    "Mean, std, skew, kurt.: moments of the margins. Kurt. is the excess kurtosis, 0 for a normal distribution.",
    "Calib. error: mean distance of σ(|margin|) from the accuracy, in ten bins; for Bradley-Terry logits.",
    "r length: Pearson's correlation of score and length in characters. It is over completions, as is the mean score.",
    "A line that begins with … shows the pairs of the source above it with that strength of preference.",
)


def tabulate_margins(rankings: Sequence[Ranking], scores: Mapping[str, Logits]) -> Table:
    """Return a table with a record for every source, strength of preference and model, and plots of the margins.

    A record over all strengths has the `strength` `None`.

    Args:
        rankings: judged completions.
        scores: scores by model, `[ranking][completion]`, as logits.
    """
    rows = Rows.of(rankings, dict(scores))
    lengths = measure_lengths(rankings)
    sources = np.array([ranking.source for ranking in rankings])
    records: list[dict[str, Any]] = []
    for source, strength, part in iterate_slices(rows):
        inside = np.flatnonzero(np.isin(sources, list(part.all_sources)))
        for model, by_ranking in scores.items():
            # A strength belongs to a pair: no completion has one, and so neither has its score.
            scored = (
                None
                if strength
                else np.array([pair for i in inside for pair in zip(by_ranking[i], lengths[i], strict=True)])
            )
            numbers = _compute_moments(part, model) | _compute_score_statistics(scored)
            records.append({"source": source, "strength": strength, "model": model} | numbers)
    pictures = [picture for model in scores for picture in _build_pictures(rows, model, scores[model], lengths)]
    return Table("Margins", tuple(records), COLUMNS, notes=NOTES, pictures=tuple(pictures))


def _compute_moments(rows: Rows, model: str) -> dict[str, Any]:
    assert rows.extremes is not None
    values = rows.values[model]
    bins = compute_reliability(values)
    extremes = values[rows.extremes]
    # Weighted by the size of the bins: the expected calibration error.
    error = sum(b.n * abs(b.label - b.prediction) for b in bins)
    return {
        **asdict(compute_moments(values)),
        # `None` where there are no pairs: a mean of nothing is NaN, which JSON does not have.
        "accuracy": float(compute_outcomes(values).mean()) if len(values) else None,
        "best_minus_worst": float(extremes.mean()) if len(extremes) else None,
        "calibration_error": float(error / len(values)) if len(values) else None,
        "calibration": [asdict(b) for b in bins],
    }


def _compute_score_statistics(scored: Floats | None) -> dict[str, float | None]:
    """Return statistics of scores and lengths, fp64 `[completions, 2]`; `None` gives every statistic as `None`."""
    if scored is None:
        return dict.fromkeys(("mean_score", "std_score", "length_correlation", "length_spearman"))
    # A correlation does not exist if all scores, or all lengths, are equal.
    vary = bool((np.ptp(scored, axis=0) > 0).all())
    return {
        "mean_score": float(scored[:, 0].mean()),
        "std_score": float(scored[:, 0].std(ddof=1)),
        "length_correlation": float(np.corrcoef(scored.T)[0, 1]) if vary else None,
        "length_spearman": compute_spearman(scored[:, 0], scored[:, 1]) if vary else None,
    }


def _build_pictures(rows: Rows, model: str, scores: Logits, lengths: Logits) -> list[Picture]:
    values = rows.values[model]
    flat = np.array([pair for row in zip(scores, lengths, strict=True) for pair in zip(*row, strict=True)])
    bins = compute_reliability(values)
    margin_pictures = [
        Picture(f"{model}: reward margins by source.", lambda: plots.draw_margins(rows, model)),
        Picture(
            f"{model}: how often the higher score is right against σ(|margin|), in ten bins.",
            lambda: plots.draw_curve([b.prediction for b in bins], [b.label for b in bins], "σ(|margin|)", "accuracy"),
        ),
    ]
    score_picture = Picture(
        f"{model}: score against length in characters.",
        lambda: plots.draw_scatter(flat[:, 1], flat[:, 0], "characters", "score"),
    )
    # Rankings that have only ties have no margins to draw.
    return [*margin_pictures, score_picture] if len(values) else [score_picture]
