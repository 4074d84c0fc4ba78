"""Write a file or a directory that appears whole or not at all."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def get_prefix(path: Path) -> str:
    """Return the beginning of the names of temporary directories for `path`, which a killed process leaves."""
    return f".{path.name}-"


@contextmanager
def write_atomically(
    path: Path, *, durable: bool, put: Callable[[Path, Path], object] = Path.replace
) -> Iterator[Path]:
    """Yield the path of a new file or directory, which becomes `path` when the block ends without an error.

    The new path has the same name, in a temporary directory beside `path`, which is removed in any case. The
    folder of `path` is created if it is missing.

    Args:
        path: final path. An old file there is replaced; an old directory must be empty.
        durable: whether the contents reach the disk before the name does, so that they are whole even if the machine
            stops. A cache that is checked when it is read does not need this.
        put: function that gives the new path its final name.

    Raises:
        OSError: the file system refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename between file systems would be a copy. The name is random, because processes
    # of two containers have equal ids.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=get_prefix(path), ignore_cleanup_errors=True) as made:
        fresh = Path(made) / path.name
        yield fresh
        if durable:
            _sync(fresh)
        # The last step: until here nobody else sees the contents.
        put(fresh, path)


def _sync(path: Path) -> None:
    """Wait until a file, or all files of a directory, are on the disk."""
    # Each file by itself: flushing a directory only flushes its names.
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    for file in files:
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
