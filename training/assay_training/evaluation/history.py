"""Read the history of a run from its directory, whether the run is finished, stopped or still running."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay_training.config.rollout import format_weights
from assay_training.records.record import RecordError
from assay_training.records.rows import Row, read_json_lines, read_json_value

TOTALS = {"ppo": "steps", "rounds": "rounds"}  # part of a run -> configuration key with its number of steps


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it is shown in a report.

    Attributes:
        name: name that distinguishes it from the other runs of the report.
        reward: model or blend that gave the scores, as text; `None` for a run without scores.
        finished: whether the run has written its results.
    """

    name: str
    reward: str | None
    finished: bool


@dataclass(frozen=True, slots=True)
class RunHistory:
    """The metrics of one part of a run, such as `ppo`.

    Attributes:
        run: run that the part belongs to.
        part: name of the part.
        total: number of steps that the configuration asks for; `None` if it does not say.
        rows: metrics of each step.
    """

    run: Run
    part: str
    total: int | None
    rows: tuple[Row, ...]

    def read_points(self, name: str) -> list[tuple[float, float]]:
        """Return the step and the value of every finite value of a metric.

        Raises:
            RecordError: a value is not a number.
        """
        return [(float(row.get("step", int)), value) for row, value in self._read_values(name) if math.isfinite(value)]

    def count_not_finite(self, name: str) -> int:
        """Return how many values of a metric are infinite or NaN.

        Raises:
            RecordError: a value is not a number.
        """
        return sum(not math.isfinite(value) for _, value in self._read_values(name))

    @property
    def fingerprints(self) -> set[str]:
        """Return the fingerprints of the models that gave the scores.

        Raises:
            RecordError: a fingerprint is not a text.
        """
        return {row.text("fingerprint") for row in self.rows if "fingerprint" in row.fields}

    def _read_values(self, name: str) -> list[tuple[Row, float]]:
        return [(row, row.get(name, float)) for row in self.rows if name in row.fields]


def read_run(directory: Path, name: str) -> tuple[Run, list[RunHistory]]:
    """Read a run and the history of every part that has a finished step.

    Args:
        directory: directory of the run.
        name: name of the run in the report.

    Raises:
        RecordError: the directory is not that of a run, or a row of metrics is malformed.
    """
    metrics, recorded = directory / "metrics.jsonl", directory / "run.json"
    if not (metrics.is_file() or recorded.is_file()):
        raise RecordError(f"{directory}: not the directory of a run: it has neither metrics.jsonl nor run.json")
    config: Mapping[str, Any] = {}
    if recorded.is_file():
        config = Row(str(recorded), "run", read_json_value(recorded, dict)).get("config", dict)
    parts: dict[str, list[Row]] = {}
    # A run that is still writing may have an unfinished last line, which `growing` skips.
    for row in read_json_lines(metrics, growing=True) if metrics.is_file() else ():
        row.get("step", int)
        parts.setdefault(row.text("part"), []).append(row)
    run = Run(name, _describe_reward(Row(str(recorded), "run", config)), (directory / "results.json").is_file())
    return run, [RunHistory(run, part, config.get(TOTALS.get(part, "")), tuple(rows)) for part, rows in parts.items()]


def _describe_reward(config: Row) -> str | None:
    """Return the reward of a configuration as text, such as `0.25 preference + 0.75 absolute`.

    Weights are sorted, so that equal rewards have equal texts in whatever order they were written.
    """
    if "reward" not in config.fields:
        return None
    if config.get("reward", dict).get("weights") is None:
        name = config.text("reward.model")
        return f"p({name})" if config.text("reward.value") == "probability" else name
    weights = sorted((weight, name) for name, weight in config.get("reward.weights", dict).items())
    return format_weights({name: weight for weight, name in weights})
