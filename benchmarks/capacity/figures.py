"""Draw the figures of docs/scale.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.capacity.report import compute_percentile, split_by_time
from benchmarks.capacity.scenario import Result, Scenario

STEP_S = 5.0
SIZE_IN = (7.0, 2.8)
STYLE: Any = {"svg.hashsalt": "assay", "svg.fonttype": "none", "font.size": 8.0}


def draw_routing(
    path: Path,
    loads: Sequence[float],
    routings: Sequence[str],
    numbers: Mapping[tuple[float, str], Mapping[str, float]],
) -> None:
    """Draw P99 and cost by load, one line for each routing.

    Args:
        path: file to write.
        loads: the loads.
        routings: names of the routings.
        numbers: the numbers of `summarize`, by load and routing.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _make_figure(2)
        for axis, column, label in zip(
            axes, ("P99 s", "cost"), ("P99, seconds", "price of a million scores"), strict=True
        ):
            for name in routings:
                axis.plot(loads, [numbers[load, name][column] for load in loads], marker="o", markersize=3, label=name)
            axis.set_xlabel("offered load, as a share of the capacity")
            axis.set_ylabel(label)
            axis.set_ylim(bottom=0)
        axes[0].legend(frameon=False)
        _save(figure, path)


def draw_lag(path: Path, results: Mapping[str, tuple[Scenario, Result]], event_s: float) -> None:
    """Draw the paid replicas and the P99 over time, one line for each time that a replica takes to start."""
    with mpl.rc_context(STYLE):
        figure, (left, right) = _make_figure(2)
        for name, (scenario, result) in results.items():
            times, sizes = zip(*[size for size in result.sizes if size[0] > 0] or result.sizes[-1:], strict=True)
            first = [size for at_s, size in result.sizes if at_s == 0.0][-1]
            line = ([0.0, *times, scenario.seconds], [first, *sizes, sizes[-1]])
            left.step(*line, where="post", label=name)
            _plot_percentile(right, scenario, result, name)
        left.set_xlim(0, scenario.seconds)
        left.set_ylabel("paid replicas")
        left.set_ylim(bottom=0)
        right.set_yscale("log")
        for axis in (left, right):
            axis.set_xlabel("seconds")
            axis.axvline(event_s, color="gray", linewidth=0.6, linestyle=":")
        right.legend(frameon=False)
        _save(figure, path)


def draw_zone(path: Path, results: Mapping[str, tuple[Scenario, Result]], event_s: float) -> None:
    """Draw answered items and the P99 over time, one line for each load, around the loss of a zone."""
    with mpl.rc_context(STYLE):
        figure, (left, right) = _make_figure(2)
        for name, (scenario, result) in results.items():
            edges = [number * STEP_S for number in range(int(scenario.seconds / STEP_S))]
            rates = [sum(one.items for one in result.tally.select_done(at, at + STEP_S)) / STEP_S for at in edges]
            left.plot([at + STEP_S / 2 for at in edges], rates, label=name)
            _plot_percentile(right, scenario, result, name)
        left.set_ylabel("answered items/s")
        left.set_ylim(bottom=0)
        for axis in (left, right):
            axis.set_xlabel("seconds")
            axis.axvline(event_s, color="gray", linewidth=0.6, linestyle=":")
        left.legend(frameon=False)
        _save(figure, path)


def _plot_percentile(axis: Axes, scenario: Scenario, result: Result, name: str) -> None:
    steps = split_by_time(result.tally.select_done(), STEP_S, scenario.seconds)
    middles = [(number + 0.5) * STEP_S for number in range(len(steps))]
    axis.plot(middles, [compute_percentile([one.seconds for one in ones], 0.99) for ones in steps], label=name)
    axis.set_ylabel("P99 of requests that began then, seconds")


def _make_figure(columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=SIZE_IN, layout="constrained")
    axes = [figure.add_subplot(1, columns, number + 1) for number in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
