"""Pictures of results."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from assay_training.algorithms.statistics import Floats, moments
from assay_training.evaluation.rows import Rows

BINS = 60
SIZE = (5.0, 3.2)
MOST_INSIDE = 6  # lines in a legend within the axes; that of more stands beside them
LETTER, LINE = 0.09, 0.24  # inches in a legend


def margins(rows: Rows, model: str) -> Figure:
    """The distribution of a model's reward margins, a panel per source ([Margin] figure 1)."""
    sources = [str(source) for source in np.unique(rows.sources)]
    figure = Figure(figsize=(4 * len(sources), 3.2), layout="constrained")
    for axes, source in zip(figure.subplots(1, len(sources), squeeze=False)[0], sources, strict=True):
        values = rows.values[model][rows.sources == source]
        of = moments(values)
        skewness = "–" if of.skewness is None else f"{of.skewness:.2f}"
        axes.hist(values, bins=BINS)
        axes.axvline(0, color="black", linewidth=1)
        axes.axvline(values.mean(), color="tab:red", linewidth=1)
        axes.set_title(f"{source}, {of.n} pairs")
        axes.set_xlabel(f"margin: mean {of.mean:.2f}, {of.share_negative:.0%} < 0, skewness {skewness}")
    return figure


def curve(x: Sequence[float], y: Sequence[float], x_label: str, y_label: str) -> Figure:
    """Points joined, with the diagonal where both are equal."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.plot([min(x, default=0), 1], [min(x, default=0), 1], color="gray", linewidth=1)
    axes.plot(x, y, marker="o")
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure


def scatter(x: Floats, y: Floats, x_label: str, y_label: str) -> Figure:
    """Points, as a raster: there may be many."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.scatter(x, y, s=4, alpha=0.3, rasterized=True)
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure


def lines(
    points: Mapping[str, Sequence[tuple[float, float]]], ticks: Mapping[float, str], x_label: str, y_label: str
) -> Figure:
    """A line per name, over powers of two, which `ticks` name."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for name, of in points.items():
        axes.plot([x for x, _ in of], [y for _, y in of], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.legend()
    return figure


def intervals(rows: Sequence[tuple[str, float, float, float]], x_label: str, middle: float) -> Figure:
    """Values with their intervals, one below the other, and a line in the middle.

    Args:
        rows: name, value, lower and upper end.
        x_label: of the values.
        middle: where nothing is said for either side.
    """
    figure = Figure(figsize=(SIZE[0], 0.8 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(middle, color="gray", linewidth=1)
    for place, (_, value, low, high) in enumerate(rows):
        axes.plot([low, high], [place, place], color="tab:blue")
        axes.plot([value], [place], marker="o", color="tab:blue")
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(x_label)
    return figure


def dots(points: Mapping[str, Sequence[float]], names: Sequence[str], x_label: str) -> Figure:
    """A line of dots for every name, a colour for every key."""
    figure = Figure(figsize=(1.6 * SIZE[0], 0.8 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    for key, values in points.items():
        axes.scatter(values, range(len(names)), label=key)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(x_label)
    axes.legend()
    return figure


def courses(points: Mapping[str, Sequence[tuple[float, float]]], y_label: str) -> Figure:
    """A line per run over its steps: every step faint, their running mean on top. 20 have colours of their own."""
    beside = len(points) > MOST_INSIDE
    wide = 1.4 * SIZE[0] + (LETTER * max(map(len, points)) if beside else 0)
    figure = Figure(figsize=(wide, max(SIZE[1], LINE * len(points))), layout="constrained")
    axes = figure.subplots()
    if len(points) > len(mpl.color_sequences["tab10"]):
        axes.set_prop_cycle(color=mpl.color_sequences["tab20"])
    for name, of in points.items():
        x, y = np.array(of).T
        window = max(1, len(y) // 20)
        (line,) = axes.plot(x, y, alpha=0.25, linewidth=0.8)
        smooth = np.convolve(y, np.ones(window) / window, mode="valid")
        mark = "o" if len(y) == 1 else None  # a line has two ends
        axes.plot(x[window - 1 :], smooth, color=line.get_color(), label=name, marker=mark)
    axes.set(xlabel="step", ylabel=y_label)
    if beside:
        figure.legend(loc="outside right upper")
    else:
        axes.legend()
    return figure
