"""Write the metrics of a run: one row for each step as JSON lines, and TensorBoard files for plots."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from assay_training.runs.files import replace_whole


class MetricsWriter:
    """A writer of the metrics of one training of a run, one row for each step.

    Args:
        run: run directory.
        part: name of the training, such as a fold or a stage; every row has it.
    """

    def __init__(self, run: Path, part: str) -> None:
        self._file = run / "metrics.jsonl"
        self._plots = run / "tensorboard" / part
        self._part = part

    def begin(self, step: int) -> None:
        """Open the writer, and remove the rows from `step` on, which an interrupted run wrote and will repeat."""
        written = self._file.read_text() if self._file.is_file() else ""
        kept = "".join(f"{line}\n" for line in written.splitlines() if self._is_kept(line, step))
        if kept != written:  # also true if only the last newline is missing; the next row would continue that line
            replace_whole(self._file, lambda path: path.write_text(kept))
        self._writer = SummaryWriter(str(self._plots), purge_step=step)

    def _is_kept(self, line: str, step: int) -> bool:
        """Return whether a row belongs to another training or to a step before `step`."""
        try:
            row = json.loads(line)
        except ValueError:  # half a line, which a power cut left; the run repeats its step
            return False
        return bool(row["part"] != self._part or row["step"] < step)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row.

        Args:
            row: `step`, and metrics by name; numbers are plotted, texts are not.

        Raises:
            FloatingPointError: a number is not finite; the message names step and metric.
        """
        fault = next(find_not_finite(row), None)
        if fault is not None:
            raise FloatingPointError(f"{self._part}: step {row['step']}: {fault[0]} is {fault[1]}")
        with self._file.open("a") as stream:
            stream.write(json.dumps({"part": self._part, **row}, allow_nan=False) + "\n")
        for name, value in row.items():
            if name != "step" and not isinstance(value, str):
                self._writer.add_scalar(name, value, row["step"])

    def end(self) -> None:
        """Flush and close the TensorBoard file."""
        self._writer.close()


def find_not_finite(value: Any, name: str = "") -> Iterator[tuple[str, float]]:  # noqa: ANN401 - JSON
    """Yield the numbers of a JSON value that are not finite, each with the keys and indices that lead to it."""
    if isinstance(value, float):
        if not math.isfinite(value):
            yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from find_not_finite(part, f"{name}.{key}".removeprefix("."))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from find_not_finite(part, f"{name}[{number}]")
