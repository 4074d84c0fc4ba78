"""Pictures of a run's results."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from assay_training.algorithms.statistics import moments
from assay_training.evaluation.results import MODEL
from assay_training.evaluation.rows import Rows

BINS = 60


def margins(rows: Rows, path: Path) -> None:
    """The distribution of the model's reward margins, a panel per source (the margin paper's Fig. 1), as a PNG."""
    sources = [str(source) for source in np.unique(rows.sources)]
    figure = Figure(figsize=(4 * len(sources), 3.2), layout="constrained")
    for axes, source in zip(figure.subplots(1, len(sources), squeeze=False)[0], sources, strict=True):
        values = rows.values[MODEL][rows.sources == source]
        of = moments(values)
        axes.hist(values, bins=BINS)
        axes.axvline(0, color="black", linewidth=1)
        axes.axvline(of.mean, color="tab:red", linewidth=1)
        axes.set_title(f"{source}, {of.n} pairs")
        axes.set_xlabel(f"margin: mean {of.mean:.2f}, {of.share_negative:.0%} < 0, skewness {of.skewness:.2f}")
    figure.savefig(path, format="png", dpi=120)
