"""Collect and plot the metrics of a plan's PPO runs by step, in the plots of [CRS].

    python -m assay_experiments.run_metrics PLAN [--runs runs/experiments]

Metrics go to `training/assay_experiments/results/PLAN-metrics.json`, plots to `docs/figures`.
A variant with several seeds is plotted as their mean.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import typer

from assay_experiments.sweep import build_runs, read_plan, write_rows
from assay_training.evaluation import plots

FIGURES = Path(__file__).parents[2] / "docs" / "figures"
KEPT = ("score", "kl", "length", "eos_rate", "entropy", "rollout_s", "score_s", "score_wait_s", "update_s")
DIGITS = 4  # enough for the plots, and keeps the committed file small


@dataclass(frozen=True)
class Figure:
    """A plot of one metric for several variants.

    Attributes:
        name: name of the file.
        metric: name of the metric.
        label: label of the metric's axis.
        variants: names of the variants to plot.
    """

    name: str
    metric: str
    label: str
    variants: Sequence[str]


KL = "KL to the reference, nats per completion"
SWEPT = ("pref, KL 0.01", "pref", "pref, KL 0.15")
# The figures of each plan.
DRAWN = {
    "ppo": (
        Figure("ppo-kl-by-weight", "kl", KL, ("abs", "crs 0.25", "crs 0.5", "crs 0.75", "pref")),
        Figure("ppo-kl-by-coefficient", "kl", KL, SWEPT),
        Figure("ppo-score-by-coefficient", "score", "preference logit", SWEPT),
        Figure("ppo-length-bounded", "length", "tokens per completion", ("abs", "abs bounded")),
        Figure(
            "ppo-ends-by-penalty",
            "eos_rate",
            "share of completions that end with EOS",
            ("crs 0.25", "crs 0.25, no EOS penalty"),
        ),
        Figure("ppo-lora-on-lora", "kl", KL, ("crs 0.25", "crs 0.25 after rejection sampling")),
    ),
}


def read_metrics(path: Path) -> dict[str, list[float]]:
    """Read the metrics `KEPT` of a run, one value per step."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {name: [round(row[name], DIGITS) for row in rows] for name in KEPT}


def average_seeds(rows: Sequence[dict[str, Any]], variant: str, metric: str) -> list[tuple[float, float]]:
    """Return the step and the mean of a metric over a variant's seeds, for every step."""
    values = np.array([row["metrics"][metric] for row in rows if row["variant"] == variant])
    return [(float(step), float(value)) for step, value in enumerate(values.mean(axis=0))]


def main(plan: Annotated[Path, typer.Argument(exists=True)], runs: Path = Path("runs/experiments")) -> None:
    """Collect and plot the finished runs of a plan."""
    planned = build_runs(plan, read_plan(plan), runs)
    done = [run for run in planned if (run.directory / "results.json").is_file()]
    rows = [
        {"variant": run.variant, "seed": run.seed, "metrics": read_metrics(run.directory / "metrics.jsonl")}
        for run in done
    ]
    write_rows(f"{plan.stem}-metrics", rows)
    # Text stays text, and ids do not change from one drawing to the next: diffs of the files show real changes.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "assay"})
    FIGURES.mkdir(exist_ok=True)
    for figure in DRAWN.get(plan.stem, ()):
        drawn = {name: average_seeds(rows, name, figure.metric) for name in figure.variants}
        # Without a date in the file, an unchanged plot is an unchanged file.
        path = FIGURES / f"{figure.name}.svg"
        plots.draw_metrics(drawn, figure.label).savefig(path, metadata={"Date": None})
    typer.echo(f"collected {len(done)} finished runs of {len(planned)} planned runs")


if __name__ == "__main__":
    typer.run(main)
