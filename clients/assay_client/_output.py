"""Rows of an output file, which appears whole or not at all, and goes on where an earlier run stopped."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from assay_client.errors import InvalidInput

STANDARD = "-"  # stdout

Row = dict[str, object]


@dataclass
class Sink:
    """Where rows go.

    Attributes:
        file: takes one JSON object per line.
        state: the file beside it that says which run the rows belong to; None where no run goes on.
        run: what tells this run from others, None if its input cannot be read twice.
        earlier: how many rows an earlier run wrote.
        fingerprint: of all rows so far; None before the first.
    """

    file: TextIO
    state: Path | None = None
    run: Row | None = None
    earlier: int = 0
    fingerprint: str | None = None

    def write(self, rows: list[Row], fingerprint: str | None) -> None:
        """Write rows that came from one answer; they outlive this process. `fingerprint` is that of all rows."""
        if fingerprint != self.fingerprint:
            self.fingerprint = fingerprint
            self.note()
        self.file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        self.file.flush()

    def note(self) -> None:
        """Write down which run the rows belong to, before the first of them is there."""
        if self.state is not None:
            fresh = self.state.with_name(f"{self.state.name}.new")
            fresh.write_text(json.dumps({"run": self.run, "fingerprint": self.fingerprint}))
            fresh.replace(self.state)


def part_of(target: Path) -> Path:
    """Return the file that holds the rows until all of them are there."""
    return target.with_name(f"{target.name}.part")


def _state_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def kept(target: str) -> str | None:
    """Say what an unfinished run left beside `target` and how to go on; None if it left nothing."""
    part = part_of(Path(target).resolve())
    if target == STANDARD or not _state_of(part).exists() or not part.exists():
        return None
    with part.open("rb") as lines:
        rows = sum(1 for _ in lines)
    can_go_on = json.loads(_state_of(part).read_text())["run"] is not None
    return f"{rows} rows are in {part}" + "; run the same command again to go on from there" * can_go_on


@contextmanager
def written(target: str, run: Row | None, on_earlier: Callable[[Row], None] = lambda row: None) -> Iterator[Sink]:
    """A sink whose rows appear under `target` only when all are written; "-" is stdout.

    Until then they are in `TARGET.part`, which stays if the run ends early. The same run goes on there. Devices and
    pipes are written to directly.

    Args:
        target: path or "-".
        run: what tells this run from others; None if the input cannot be read twice, so that nothing goes on.
        on_earlier: is given each row that an earlier run wrote.

    Raises:
        InvalidInput: the part belongs to another run, or another process writes it.
    """
    path = Path(target).resolve()  # so that a link stays a link
    if target == STANDARD:
        yield Sink(sys.stdout)
        sys.stdout.flush()
        return
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as device:
            yield Sink(device)
        return
    part = part_of(path)  # beside the target, as a rename does not cross file systems
    with part.open("a+", encoding="utf-8") as file:
        _lock(file, part)
        sink = Sink(file, _state_of(part), run)
        _continue(sink, part, on_earlier)
        sink.note()
        try:
            yield sink
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
        finally:
            if not part.exists() or part.stat().st_size == 0:
                part.unlink(missing_ok=True)
                _state_of(part).unlink(missing_ok=True)


def _continue(sink: Sink, part: Path, on_earlier: Callable[[Row], None]) -> None:
    """Read what an earlier run wrote; its last line is dropped if it was cut off."""
    assert sink.state is not None
    if part.stat().st_size == 0:
        return
    if not sink.state.exists():
        raise InvalidInput(f"{part} is in the way and was not written by this command; move it")
    state = json.loads(sink.state.read_text())
    theirs, ours = state["run"], sink.run or {}
    if theirs is None:
        sink.file.truncate(0)  # of standard input: no run can go on there
        return
    other = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if other:
        raise InvalidInput(
            f"{part} holds rows of another run: {', '.join(other)} differ. "
            f"Delete {part} to start over, or give another output"
        )
    sink.file.seek(0)  # read by the handle that is locked: closing another one would give up the lock
    whole_bytes = 0
    for line in sink.file:
        if line.endswith("\n"):
            on_earlier(json.loads(line))
            sink.earlier += 1
            whole_bytes += len(line)  # the lines are ASCII
    sink.file.truncate(whole_bytes)
    sink.fingerprint = state["fingerprint"]


def _lock(file: TextIO, part: Path) -> None:
    """Keep other processes from writing the same part. Windows has no such lock, and goes without."""
    if sys.platform == "win32":
        return
    import fcntl  # noqa: PLC0415

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), part.stat()):
            return
    except OSError as error:
        raise InvalidInput(f"another process writes {part}") from error
    raise InvalidInput(f"another process has just finished {part}")
