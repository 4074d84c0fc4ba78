"""Runs beside each other: what they came to, and how they got there (the thesis' Figures 20 to 23 and 26)."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay_training.evaluation import plots
from assay_training.evaluation.table import Picture, Table, number, text
from assay_training.records.record import RecordError
from assay_training.records.rows import rows_of_file

LAST_SHARE = 0.1  # of a run's steps is what it came to
MEANT = {
    "score": "score",
    "shaped_score": "score within the clip, less the penalty for completions that were cut off",
    "kl": "KL to the reference, nats per completion",
    "kl_reward": "reward that the KL takes away, per completion",
    "kl_coef": "KL coefficient",
    "length": "tokens of a completion",
    "eos_rate": "share of completions that end by themselves",
    "entropy": "entropy, nats per token",
    "ratio": "ratio of new to old probabilities",
    "clip_fraction": "share of ratios that are clipped",
    "value_clip_fraction": "share of values that are clipped",
    "explained_variance": "explained variance of the values",
    "score_length_correlation": "correlation of score and length",
    "engine_gap": "difference of engine and trainer, nats per token",
    "loss": "loss",
    "grad_norm": "norm of the gradient",
    "rollout_s": "seconds in the engine, per step",
    "score_s": "seconds in the service's calls, per step",
    "score_wait_s": "seconds of those in which nothing was generated, per step",
    "update_s": "seconds of looking and learning, per step",
}
COLUMNS = (
    text("run", "run"),
    text("part", "part"),
    text("steps", "steps"),
    number("score", "score", ".3f"),
    number("KL", "kl", ".2f"),
    number("length", "length", ".0f"),
    number("ends", "eos_rate", ".0%"),
    number("entropy", "entropy", ".2f"),
    number("loss", "loss", ".3f"),
)
NOTE = "The mean of the last tenth of each run's steps, one at least."


@dataclass(frozen=True, slots=True)
class Course:
    """The steps of one part of a run.

    Attributes:
        run: its name.
        part: of the run.
        rows: by step.
    """

    run: str
    part: str
    rows: tuple[Mapping[str, Any], ...]

    def points(self, name: str) -> list[tuple[float, float]]:
        """Step and value of what is counted under a name."""
        return [(float(row["step"]), float(row[name])) for row in self.rows if name in row]


def names_of(directories: Sequence[Path]) -> list[str]:
    """What tells runs apart: their paths from the folder that holds all of them; the name of a run that is alone."""
    whole = [directory.resolve() for directory in directories]
    common = Path(os.path.commonpath([path.parent for path in whole]))
    return [str(path.relative_to(common)) for path in whole]


def read_courses(directory: Path, name: str) -> list[Course]:
    """Every part of a run.

    Args:
        directory: of the run.
        name: that it gets.

    Raises:
        RecordError: the directory is no run's, or a row is not one of metrics.
    """
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows_of_file(directory / "metrics.jsonl"):
        row.get("step", int)
        parts.setdefault(row.text("part"), []).append(row.fields)
    if not parts:
        raise RecordError(f"{directory}: no step is done")
    return [Course(name, part, tuple(rows)) for part, rows in parts.items()]


def overlay(courses: Sequence[Course]) -> Table:
    """A record for every part of every run, and a picture for everything that they count."""
    names = [name for name in MEANT if any(course.points(name) for course in courses)]
    records = [_record(course, names) for course in courses]
    pictures = [_picture(name, courses) for name in names]
    return Table("Runs", tuple(records), COLUMNS, notes=(NOTE,), pictures=tuple(pictures))


def _picture(name: str, courses: Sequence[Course]) -> Picture:
    several = len({course.part for course in courses}) > 1
    found = {f"{c.run} {c.part}" if several else c.run: points for c in courses if (points := c.points(name))}
    return Picture(f"{MEANT[name]}.", lambda: plots.courses(found, name))


def _record(course: Course, names: Sequence[str]) -> dict[str, Any]:
    last = max(1, round(LAST_SHARE * len(course.rows)))
    found: dict[str, Any] = {"run": course.run, "part": course.part, "steps": len(course.rows)}
    for name in dict.fromkeys([*names, "score", "kl", "length", "eos_rate", "entropy", "loss"]):
        values = [value for _, value in course.points(name)][-last:]
        found[name] = sum(values) / len(values) if values else None
    return found
