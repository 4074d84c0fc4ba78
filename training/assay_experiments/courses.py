"""How policies got where they are: the steps of a plan of PPO, kept and drawn as [CRS] draws them.

    python -m assay_experiments.courses PLAN [--runs runs/experiments]

Numbers go to `training/assay_experiments/results/PLAN-courses.json`, pictures to `docs/figures`.
A variant with several seeds is drawn as their mean.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import typer

from assay_experiments.sweep import read, runs_of, write_rows
from assay_training.evaluation import plots

FIGURES = Path(__file__).parents[2] / "docs" / "figures"
KEPT = ("score", "kl", "length", "eos_rate", "entropy", "rollout_s", "score_s", "score_wait_s", "update_s")
DIGITS = 4


@dataclass(frozen=True)
class Figure:
    """What is drawn.

    Attributes:
        name: of the file.
        number: that every variant has.
        label: of the number.
        variants: those.
    """

    name: str
    number: str
    label: str
    variants: Sequence[str]


KL = "KL to the reference, nats per answer"
SWEPT = ("pref, KL 0.01", "pref", "pref, KL 0.15")
DRAWN = (
    Figure("ppo-kl-by-weight", "kl", KL, ("abs", "crs 0.25", "crs 0.5", "crs 0.75", "pref")),
    Figure("ppo-kl-by-coefficient", "kl", KL, SWEPT),
    Figure("ppo-score-by-coefficient", "score", "preference logit", SWEPT),
    Figure("ppo-length-bounded", "length", "tokens of an answer", ("abs", "abs bounded")),
    Figure("ppo-ends-by-penalty", "eos_rate", "share that ends by itself", ("crs 0.25", "crs 0.25, no EOS penalty")),
    Figure("ppo-lora-on-lora", "kl", KL, ("crs 0.25", "crs 0.25 after rejection sampling")),
)


def course(path: Path) -> dict[str, list[float]]:
    """What is kept of a run's steps."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {name: [round(row[name], DIGITS) for row in rows] for name in KEPT}


def points(rows: Sequence[dict[str, Any]], variant: str, number: str) -> list[tuple[float, float]]:
    """The mean over a variant's seeds, step by step."""
    values = np.array([row["course"][number] for row in rows if row["variant"] == variant])
    return [(float(step), float(value)) for step, value in enumerate(values.mean(axis=0))]


def main(plan: Annotated[Path, typer.Argument(exists=True)], runs: Path = Path("runs/experiments")) -> None:
    """Keeps and draws what is there."""
    found = runs_of(plan, read(plan), runs)
    done = [run for run in found if (run.directory / "results.json").is_file()]
    rows = [
        {"variant": run.variant, "seed": run.seed, "course": course(run.directory / "metrics.jsonl")} for run in done
    ]
    write_rows(f"{plan.stem}-courses", rows)
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "assay"})
    FIGURES.mkdir(exist_ok=True)
    for figure in DRAWN:
        drawn = {name: points(rows, name, figure.number) for name in figure.variants}
        path = FIGURES / f"{figure.name}.svg"
        plots.courses(drawn, figure.label).savefig(path, metadata={"Date": None})
    typer.echo(f"{len(done)} of {len(found)} runs are done and have been kept")


if __name__ == "__main__":
    typer.run(main)
