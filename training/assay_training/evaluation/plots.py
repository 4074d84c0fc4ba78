"""Draw the plots of evaluations and runs, without a display."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from assay_training.algorithms.statistics import Floats, compute_moments
from assay_training.evaluation.rows import Rows

BINS = 60
SIZE = (5.0, 3.2)  # inches
MAX_LINES_INSIDE = 6  # lines in a legend within the axes; a longer legend is drawn beside them
LETTER_WIDTH, LINE_HEIGHT = 0.09, 0.24  # inches in a legend, by which the figure grows with it


def draw_margins(rows: Rows, model: str) -> Figure:
    """Draw the distribution of a model's reward margins, one panel per source ([Margin] figure 1).

    Args:
        rows: rows of pairs.
        model: name of a contender of `rows`.
    """
    sources = [str(source) for source in np.unique(rows.sources)]
    figure = Figure(figsize=(4 * len(sources), 3.2), layout="constrained")
    for axes, source in zip(figure.subplots(1, len(sources), squeeze=False)[0], sources, strict=True):
        values = rows.values[model][rows.sources == source]
        measured = compute_moments(values)
        skewness = "–" if measured.skewness is None else f"{measured.skewness:.2f}"
        axes.hist(values, bins=BINS)
        axes.axvline(0, color="black", linewidth=1)
        axes.axvline(values.mean(), color="tab:red", linewidth=1)
        axes.set_title(f"{source}, {measured.n} pairs")
        axes.set_xlabel(
            f"margin: mean {measured.mean:.2f}, {measured.share_negative:.0%} negative, skewness {skewness}"
        )
    return figure


def draw_curve(x: Sequence[float], y: Sequence[float], x_label: str, y_label: str) -> Figure:
    """Draw connected points, with the diagonal on which x and y are equal."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    # The diagonal begins with the data, as σ(|margin|) is never below one half.
    axes.plot([min(x, default=0), 1], [min(x, default=0), 1], color="gray", linewidth=1)
    axes.plot(x, y, marker="o")
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure


def draw_scatter(x: Floats, y: Floats, x_label: str, y_label: str) -> Figure:
    """Draw points, fp64 `[n]` each."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    # As an image inside the SVG: one element per point would make the page slow.
    axes.scatter(x, y, s=4, alpha=0.3, rasterized=True)
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure


def draw_lines(
    points: Mapping[str, Sequence[tuple[float, float]]], ticks: Mapping[float, str], x_label: str, y_label: str
) -> Figure:
    """Draw one line per name over a logarithmic axis of base 2.

    Args:
        points: x and y of each point, by name.
        ticks: labels by position on the x axis.
        x_label: label of the x axis.
        y_label: label of the y axis.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for name, pairs in points.items():
        axes.plot([x for x, _ in pairs], [y for _, y in pairs], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.legend()
    return figure


def draw_intervals(rows: Sequence[tuple[str, float, float, float]], x_label: str, middle: float) -> Figure:
    """Draw values with their intervals, one below the other, and a vertical line.

    Args:
        rows: name, value, lower and upper bound of each interval.
        x_label: label of the values.
        middle: position of the line, at the value that favors neither side.
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


def draw_dots(points: Mapping[str, Sequence[float]], names: Sequence[str], x_label: str) -> Figure:
    """Draw a row of dots for every name, with a color for every key of `points`.

    Args:
        points: values by key, one for each name.
        names: labels of the rows.
        x_label: label of the values.
    """
    figure = Figure(figsize=(1.6 * SIZE[0], 0.8 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    for key, values in points.items():
        axes.scatter(values, range(len(names)), label=key)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(x_label)
    axes.legend()
    return figure


def draw_metrics(points: Mapping[str, Sequence[tuple[float, float]]], y_label: str) -> Figure:
    """Draw one line per run over its steps: the values faint, and their running mean on top.

    The running mean is over a twentieth of the run's steps. Up to 20 runs have different colors.

    Args:
        points: step and value of each point, by run.
        y_label: label of the values.
    """
    is_beside = len(points) > MAX_LINES_INSIDE
    width = 1.4 * SIZE[0] + (LETTER_WIDTH * max(map(len, points)) if is_beside else 0)
    figure = Figure(figsize=(width, max(SIZE[1], LINE_HEIGHT * len(points))), layout="constrained")
    axes = figure.subplots()
    if len(points) > len(mpl.color_sequences["tab10"]):
        axes.set_prop_cycle(color=mpl.color_sequences["tab20"])
    for name, pairs in points.items():
        x, y = np.array(pairs).T
        window = max(1, len(y) // 20)
        (line,) = axes.plot(x, y, alpha=0.25, linewidth=0.8)
        smooth = np.convolve(y, np.ones(window) / window, mode="valid")
        marker = "o" if len(y) == 1 else None  # a line of one point would be invisible
        axes.plot(x[window - 1 :], smooth, color=line.get_color(), label=name, marker=marker)
    axes.set(xlabel="step", ylabel=y_label)
    if is_beside:
        figure.legend(loc="outside right upper")
    else:
        axes.legend()
    return figure
