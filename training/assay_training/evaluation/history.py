"""What the directory of a run tells of its course, be the run finished, killed or at work."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay_training.records.record import RecordError
from assay_training.records.rows import Row, json_of, rows_of_file

TOTALS = {"ppo": "steps", "rounds": "rounds"}  # part -> where a configuration says how many steps it has


@dataclass(frozen=True, slots=True)
class Run:
    """A run.

    Attributes:
        name: what tells it from others.
        reward: what its scores are of, in words; None where it has none.
        finished: whether it has come to its results.
    """

    name: str
    reward: str | None
    finished: bool


@dataclass(frozen=True, slots=True)
class RunHistory:
    """The steps of one part of a run.

    Attributes:
        run: whose.
        part: of the run.
        of: how many steps it is to have; None where the configuration does not say.
        rows: by step.
    """

    run: Run
    part: str
    of: int | None
    rows: tuple[Row, ...]

    def points(self, name: str) -> list[tuple[float, float]]:
        """Step and value of what is counted under a name, but for values that are not finite.

        Raises:
            RecordError: one is no number.
        """
        return [(float(row.get("step", int)), value) for row, value in self._values(name) if math.isfinite(value)]

    def lost(self, name: str) -> int:
        """How many values are not finite.

        Raises:
            RecordError: one is no number.
        """
        return sum(not math.isfinite(value) for _, value in self._values(name))

    @property
    def fingerprints(self) -> set[str]:
        """Of the models that gave the scores.

        Raises:
            RecordError: one is no text.
        """
        return {row.text("fingerprint") for row in self.rows if "fingerprint" in row.fields}

    def _values(self, name: str) -> list[tuple[Row, float]]:
        return [(row, row.get(name, float)) for row in self.rows if name in row.fields]


def read_run(directory: Path, name: str) -> tuple[Run, list[RunHistory]]:
    """A run and every part of it that has a step.

    Args:
        directory: of the run.
        name: that it gets.

    Raises:
        RecordError: the directory is no run's, or a row is not one of metrics.
    """
    metrics, recorded = directory / "metrics.jsonl", directory / "run.json"
    if not (metrics.is_file() or recorded.is_file()):
        raise RecordError(f"{directory} is no run's directory: it has no metrics.jsonl")
    config: Mapping[str, Any] = {}
    if recorded.is_file():
        config = Row(str(recorded), "run", json_of(recorded, dict)).get("config", dict)
    parts: dict[str, list[Row]] = {}
    for row in rows_of_file(metrics, growing=True) if metrics.is_file() else ():
        row.get("step", int)
        parts.setdefault(row.text("part"), []).append(row)
    run = Run(name, _reward(Row(str(recorded), "run", config)), (directory / "results.json").is_file())
    return run, [RunHistory(run, part, config.get(TOTALS.get(part, "")), tuple(rows)) for part, rows in parts.items()]


def _reward(config: Row) -> str | None:
    """In words that are the same for the same reward, in whatever order its weights were written."""
    if "reward" not in config.fields:
        return None
    if config.get("reward", dict).get("weights") is None:
        name = config.text("reward.model")
        return f"p({name})" if config.text("reward.value") == "probability" else name
    weights = config.get("reward.weights", dict).items()
    return " + ".join(f"{weight:g} {name}" for weight, name in sorted((weight, name) for name, weight in weights))
