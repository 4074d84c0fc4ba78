"""Write a file that appears whole or not at all, also if the process is killed or the machine stops."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def find_fresh(path: Path) -> Path:
    """Return the path at which the contents of `path` are written before they get its name."""
    return path.with_name(f"{path.name}.new")  # beside it, because a rename does not cross file systems


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield the path of a new file, which replaces `path` when the block ends without an error.

    If the block fails, the new file is removed and the old one stays.
    """
    fresh = find_fresh(path)
    try:
        yield fresh
        with fresh.open("rb+") as file:
            rename_durably(file, fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def rename_durably(file: IO[Any], fresh: Path, path: Path) -> None:
    """Give a written file its final name.

    Args:
        file: the open file at `fresh`. It is not opened here: closing a second handle would release the lock of `file`.
        fresh: the path of the file.
        path: its final path, where it replaces an old file.
    """
    file.flush()
    # A machine that stops may write the name to the disk before the contents, and so leave an empty file.
    os.fsync(file.fileno())
    fresh.replace(path)
