"""Write files and directories that appear whole or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file or a directory under another name, then put it in its place.

    A process that is killed leaves the old contents or the new, never a part.

    Args:
        path: the place of the file or directory; an old directory there is removed first.
        write: writes the contents to the path that it gets, which is beside `path`.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # a directory that a killed process left
    write(temporary)
    if path.is_dir():
        shutil.rmtree(path)
    temporary.rename(path)
