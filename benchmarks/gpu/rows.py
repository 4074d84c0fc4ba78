"""Run workers under time limits, keep what they print as rows, and format the rows."""

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from benchmarks.gpu.worker import LOAD

# Parts whose failure is the failure of the whole run.
NEEDED = ("parity", "invariance")
# Published by others: items/s of 0.6B on an H100 (SGLang), and the cost of SGLang's deterministic mode.
REFERENCES = {("qwen3-0.6b", "latency"): "1,000 items/s", ("", "cost"): "34 % more time"}


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one part for one shape.

    Attributes:
        shape: name of the shape.
        part: name of the part.
        numbers: measured numbers; None if the part failed.
        reason: why it failed; None if it did not.
    """

    shape: str
    part: str
    numbers: Mapping[str, Any] | None = None
    reason: str | None = None

    @property
    def holds(self) -> bool:
        """Return whether the part has numbers, and no check in it failed."""
        return self.numbers is not None and self.numbers.get("passed", True) is True

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON."""
        return {"shape": self.shape, "part": self.part, "numbers": self.numbers, "reason": self.reason}


class Rows:
    """The rows of a run, which ends after a number of seconds.

    Args:
        seconds: time for all workers together.
    """

    def __init__(self, seconds: float) -> None:
        self.rows: list[Row] = []
        self._end_s = time.monotonic() + seconds

    def add(self, row: Row) -> Row:
        """Keep a row and print it."""
        self.rows.append(row)
        print(json.dumps(row.to_json()), flush=True)
        return row

    def holds(self, shapes: Sequence[str]) -> bool:
        """Return whether parity and invariance were shown for every shape."""
        shown = {(row.shape, row.part) for row in self.rows if row.holds}
        return all((shape, part) in shown for shape in shapes for part in NEEDED)

    def run(self, shape: str, device: str, parts: Sequence[str], limits: Mapping[str, float]) -> Row | None:
        """Run a worker until it ends; return the row of the part that failed, or None.

        The row of a part that fails is kept, except that of loading, which its caller explains for every part.
        """
        command = [sys.executable, "-m", "benchmarks.gpu.worker", shape, device, *parts]
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            assert process.stdout is not None
            lines: queue.Queue[str] = queue.Queue()
            threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True).start()
            try:
                for part in (LOAD, *parts):
                    row = self._wait(shape, part, lines, limits[part], errors)
                    if row.reason is not None:
                        return row if part == LOAD else self.add(row)
                    self.add(row)
            finally:
                process.kill()
                process.wait()
        return None

    def _wait(self, shape: str, part: str, lines: "queue.Queue[str]", limit_s: float, errors: IO[str]) -> Row:
        """Wait for the row of one part, for at most its limit and until the end of the run."""
        allowed_s = min(limit_s, self._end_s - time.monotonic())
        if allowed_s <= 0:
            return Row(shape, part, reason="not run: the time for all parts is over")
        try:
            line = lines.get(timeout=allowed_s)
        except queue.Empty:
            return Row(shape, part, reason=f"not finished within {allowed_s:g} s")
        if not line:
            errors.seek(0)
            last = [text for text in errors.read().splitlines() if text.strip()][-1:]
            return Row(shape, part, reason=f"the process ended: {last[0] if last else 'it printed nothing'}")
        printed = json.loads(line)
        return Row(shape, part, printed.get("numbers"), printed.get("reason"))


def _read_lines(stream: IO[str], lines: "queue.Queue[str]") -> None:
    """Pass the lines that are JSON objects on, then an empty line at the end."""
    for line in stream:
        if line.startswith("{"):
            lines.put(line)
    lines.put("")


def format_page(machine: Mapping[str, str], rows: Sequence[Row]) -> str:
    """Format the results as a page."""
    lines = ["# One GPU", "", "`bash benchmarks/gpu.sh`; random weights in the shapes of published models.", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items()]
    lines += ["", "| shape | part | result | to beat |", "|---|---|---|---|"]
    for row in rows:
        beside = REFERENCES.get((row.shape, row.part)) or REFERENCES.get(("", row.part), "")
        lines.append(f"| {row.shape} | {row.part} | {_format_result(row)} | {beside} |")
    return "\n".join(lines) + "\n"


def _format_result(row: Row) -> str:
    if row.numbers is None:
        return f"**failed**: {row.reason}".replace("|", "/")
    shown = {key: value for key, value in row.numbers.items() if key not in ("passed", "tried")}
    head = "" if row.holds else "**failed**; "
    return head + ", ".join(f"{key} {_format_number(value)}" for key, value in shown.items())


def _format_number(value: object) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
