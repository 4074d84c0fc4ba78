"""Write the metrics of a run: a row per step as JSON lines, and TensorBoard files for plots."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class MetricsWriter:
    """The rows of one part of a run, a row per step.

    Args:
        run: the run directory.
        part: what is trained.
    """

    def __init__(self, run: Path, part: str) -> None:
        self._file = run / "metrics.jsonl"
        self._plots = run / "tensorboard" / part
        self._part = part

    def begin(self, step: int) -> None:
        """Forgets the rows from `step` on: an interrupted run wrote them and comes by them again."""
        there = self._file.read_text() if self._file.is_file() else ""
        kept = "".join(f"{line}\n" for line in there.splitlines() if self._stays(line, step))
        if kept != there:  # also where only the last newline is missing, without which two rows would be one
            temporary = self._file.with_suffix(".tmp")
            temporary.write_text(kept)
            temporary.rename(self._file)
        self._writer = SummaryWriter(str(self._plots), purge_step=step)

    def _stays(self, line: str, step: int) -> bool:
        try:
            row = json.loads(line)
        except ValueError:  # half a line, which a power cut left; its step comes again
            return False
        return bool(row["part"] != self._part or row["step"] < step)

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends a row, which holds `step`, numbers, and texts, which are not plotted.

        Raises:
            FloatingPointError: a number is not finite; names step and metric.
        """
        lost = next(not_finite(row), None)
        if lost is not None:
            raise FloatingPointError(f"{self._part}: step {row['step']}: {lost[0]} is {lost[1]}")
        with self._file.open("a") as stream:
            stream.write(json.dumps({"part": self._part, **row}, allow_nan=False) + "\n")
        for name, value in row.items():
            if name != "step" and not isinstance(value, str):
                self._writer.add_scalar(name, value, row["step"])

    def end(self) -> None:
        """Writes what is still held back."""
        self._writer.close()


def not_finite(value: Any, name: str = "") -> Iterator[tuple[str, float]]:  # noqa: ANN401 - JSON
    """Yield the numbers of a JSON value that are not finite, each with the keys and indices that lead to it."""
    if isinstance(value, float):
        if not math.isfinite(value):
            yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from not_finite(part, f"{name}.{key}".removeprefix("."))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from not_finite(part, f"{name}[{number}]")
