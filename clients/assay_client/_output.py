"""Write the rows of an output file, which appears complete or not at all, and continue where a run stopped."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

from assay_client._atomic import find_fresh, rename_durably, write_atomically
from assay_client._parquet import is_parquet
from assay_client.errors import InvalidInput

STANDARD = "-"  # stdout

Row = dict[str, object]


@dataclass
class Sink:
    """The place where rows are written.

    Attributes:
        file: the open file, which gets one JSON object per line.
        state: the file beside it that names the run of the rows; None if no run can continue.
        run: the input's hash and the options, which distinguish runs; None if the input cannot be read twice.
        earlier: the number of rows that an earlier run wrote.
        fingerprint: the fingerprint of all rows so far; None before the first.
    """

    file: TextIO
    state: Path | None = None
    run: Row | None = None
    earlier: int = 0
    fingerprint: str | None = None

    def write(self, rows: list[Row], fingerprint: str | None) -> None:
        """Write the rows of one answer, which then outlive this process; `fingerprint` is that of all rows."""
        if fingerprint != self.fingerprint:
            self.fingerprint = fingerprint
            self.record_run()
        self.file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        self.file.flush()

    def read_earlier(self) -> Iterator[Row]:
        """Yield the rows that an earlier run wrote; it must be used up before the first row is written."""
        if self.earlier:
            self.file.seek(0)  # read by the handle that is locked: closing another handle would release the lock
            yield from (json.loads(line) for line in self.file)

    def record_run(self) -> None:
        """Record which run the rows belong to; it must be recorded before the first row is written."""
        if self.state is not None:
            with write_atomically(self.state) as fresh:
                fresh.write_text(json.dumps({"run": self.run, "fingerprint": self.fingerprint}))


def find_part(target: Path) -> Path:
    """Return the file that holds the rows until all of them are written."""
    return target.with_name(f"{target.name}.part")


def _find_state(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def describe_part(target: str) -> str | None:
    """Return a sentence about the rows that an unfinished run left beside `target`; None if it left none."""
    part = find_part(Path(target).resolve())
    if target == STANDARD or not _find_state(part).exists() or not part.exists():
        return None
    with part.open("rb") as lines:
        rows = sum(1 for _ in lines)
    can_go_on = json.loads(_find_state(part).read_text())["run"] is not None
    return f"{rows} rows are in {part}" + "; run the same command again to go on from there" * can_go_on


def check_targets(source: str, *targets: str | None) -> None:
    """Refuse to write over the input, or two outputs to one file, before anything is sent.

    Args:
        source: the path of the input, or "-".
        targets: the paths of the outputs, None for one that is not written; each also has files of its own beside it.

    Raises:
        InvalidInput: two of the files are the same, also behind a link.
    """
    taken = {} if source == STANDARD else {Path(source).resolve(): "the input"}
    for target in targets:
        # Devices and pipes may be written to twice.
        if target is None or target == STANDARD or ((path := Path(target).resolve()).exists() and not path.is_file()):
            continue
        part = find_part(path)
        for file in (path, find_fresh(path), part, _find_state(part)):
            if file in taken:
                raise InvalidInput(f"{target}: would write over {taken[file]}; name another file")
            taken[file] = f"the files of {target}"


@contextmanager
def open_errors(target: str | None) -> Iterator[Callable[[Row], None]]:
    """Yield a function that writes the row of an item to `target` if it has an error; the file appears whole.

    Until then its rows have no name, so that a run that ends early leaves none. A run that continues writes them again
    from its own output. Devices and pipes are written to directly.

    Args:
        target: the path of the file; None writes nothing.
    """
    if target is None:
        yield lambda row: None
        return
    # Behind a link, so that the rename replaces the file and not the link.
    path = Path(target).resolve()
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as device:
            yield partial(_write_error, device)
        return
    with _name_in_errors(target):
        unnamed = TemporaryFile("w+", encoding="utf-8", dir=path.parent)  # noqa: SIM115  # closed by the next `with`
    with unnamed as file:
        yield partial(_write_error, file)
        file.seek(0)
        with write_atomically(path) as fresh, fresh.open("w", encoding="utf-8") as whole:
            shutil.copyfileobj(file, whole)


@contextmanager
def _name_in_errors(target: str) -> Iterator[None]:
    """Name the file that the user gave in an error about the file beside it, which the user does not know."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from error


def _write_error(file: TextIO, row: Row) -> None:
    error = row.get("error")
    if isinstance(error, dict):
        named = {"id": row["id"]} if "id" in row else {}
        # `id` only where the row has one: a null could be the id of a row.
        file.write(json.dumps({"index": row["index"], **named, **error}) + "\n")
        file.flush()


@contextmanager
def open_output(
    target: str,
    run: Row | None,
    finish: Callable[[Path, Path], None] | None = None,
) -> Iterator[Sink]:
    """Yield a sink whose rows appear under `target` only when all are written; "-" is stdout.

    Until then they are in `TARGET.part`, which stays if the run ends early. The same run continues there. Devices and
    pipes are written to directly.

    Args:
        target: the path of the output, or "-".
        run: the input's hash and the options, which distinguish runs; None if the input cannot be read twice, so that
            no run can continue.
        finish: a function from the part, whole, and the target that writes the target; None renames the part.

    Raises:
        InvalidInput: the part belongs to another run, another process writes it, or the rows cannot become Parquet.
    """
    path = Path(target).resolve()  # so that the rename replaces the file behind a link, and not the link
    if target == STANDARD:
        yield Sink(sys.stdout)
        sys.stdout.flush()  # here, so that a reader who has left is an error of this command and not of its exit
        return
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as device:
            yield Sink(device)
        return
    if is_parquet(path) and finish is None:
        raise InvalidInput(f"{target}: only `score` writes Parquet; name a file for JSON lines")
    part = find_part(path)  # beside the target, as a rename does not cross file systems
    with _name_in_errors(target):
        opened = _open_locked(part)
    with opened as file, _keep_rows(Sink(file, _find_state(part), run), part) as sink:
        yield sink
        if finish is None:
            rename_durably(file, part, path)
        else:
            finish(part, path)
            part.unlink()


@contextmanager
def _keep_rows(sink: Sink, part: Path) -> Iterator[Sink]:
    """Yield the sink behind the rows of an earlier run; a part without rows is removed at the end.

    Raises:
        InvalidInput: the part belongs to another run.
    """
    _continue(sink, part)
    sink.record_run()
    try:
        yield sink
    finally:
        if not part.exists() or part.stat().st_size == 0:
            part.unlink(missing_ok=True)
            _find_state(part).unlink(missing_ok=True)


def _continue(sink: Sink, part: Path) -> None:
    """Find the rows of an earlier run; its last line is removed if it was cut off.

    Raises:
        InvalidInput: the rows belong to another run, or another program wrote the file.
    """
    assert sink.state is not None
    # A run that ended before its first row left nothing to continue.
    if part.stat().st_size == 0:
        return
    if not sink.state.exists():
        raise InvalidInput(f"{part} is in the way and was not written by this command; move it")
    state = json.loads(sink.state.read_text())
    # The output of a pipe names no run, so that it differs from every other one.
    theirs, ours = state["run"], sink.run or {}
    if theirs is None:
        sink.file.truncate(0)  # rows of standard input, from which no run can continue
        return
    other = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if other:
        raise InvalidInput(
            f"{part} holds rows of another run: {', '.join(other)} differ. "
            f"Delete {part} to start over, or give another output"
        )
    sink.file.seek(0)  # read by the handle that is locked: closing another handle would release the lock
    whole_bytes = 0
    for line in sink.file:
        if line.endswith("\n"):
            sink.earlier += 1
            whole_bytes += len(line)  # the lines are ASCII
    sink.file.truncate(whole_bytes)
    sink.fingerprint = state["fingerprint"]


def _open_locked(part: Path) -> TextIO:
    """Open the part for reading and appending, and lock it.

    Raises:
        InvalidInput: another process writes the part, or has just finished it.
    """
    file = part.open("a+", encoding="utf-8")  # not truncated: another process may hold the lock, and its rows must stay
    try:
        _lock(file, part)
    except BaseException:
        file.close()
        raise
    return file


def _lock(file: TextIO, part: Path) -> None:
    """Keep other processes from writing the same part; Windows has no such lock, so that it gets none.

    Raises:
        InvalidInput: another process writes the part, or has just finished it.
    """
    if sys.platform == "win32":
        return
    import fcntl  # noqa: PLC0415

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A process that finished between opening and locking has renamed the file that is locked now.
        if os.path.samestat(os.fstat(file.fileno()), part.stat()):
            return
    except OSError as error:
        raise InvalidInput(f"another process writes {part}; wait for it, or give another output") from error
    raise InvalidInput(f"another process has just finished {part}; run the command again")
