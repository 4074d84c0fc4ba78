"""Write files and directories that appear whole or not at all."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from assay_training.errors import RunStopped

# How torch says that a file cannot be written; its other errors of the same class are bugs.
_TORCH_WRITE_ERRORS = ("PytorchStreamWriter", "unexpected pos")


@contextmanager
def stop_if_unwritable(path: Path) -> Iterator[None]:
    """Stop the run with one sentence if a file cannot be written, for example because the disk is full.

    Args:
        path: the file or directory that is being written.

    Raises:
        RunStopped: the body could not write.
    """
    try:
        yield
    except (SafetensorError, RuntimeError, OSError) as error:
        # torch and safetensors have errors of their own, also where the disk is full.
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in _TORCH_WRITE_ERRORS):
            raise
        why = "torch could not write the whole file" if isinstance(error, RuntimeError) else str(error)
        raise RunStopped(
            f"{path} cannot be written: {why}; free disk space, or name another directory, and run the command again"
        ) from error


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file or a directory under another name, then put it in its place.

    A process that is killed leaves the old contents or the new, never a part. If writing fails, the old contents stay.

    Args:
        path: the place of the file or directory; an old directory there is removed first.
        write: writes the contents to the path that it gets, which is beside `path`.

    Raises:
        RunStopped: the contents cannot be written.
    """
    # Beside it, because a rename does not cross file systems.
    temporary = path.with_name(f"{path.name}.tmp")
    _remove(temporary)  # what a killed process left
    try:
        with stop_if_unwritable(path):
            write(temporary)
    except BaseException:
        _remove(temporary)
        raise
    if path.is_dir():
        shutil.rmtree(path)
    temporary.rename(path)


def _remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
