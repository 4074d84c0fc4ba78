"""Find the directory in which Assay keeps files that it can make again."""

import errno
import os
from pathlib import Path


def find_cache_directory() -> Path:
    """Return `$XDG_CACHE_HOME/assay`, or `~/.cache/assay` without that variable; it need not exist.

    Raises:
        OSError: the variable is not set, and this user has no home directory.
    """
    declared = os.environ.get("XDG_CACHE_HOME", "")
    if Path(declared).is_absolute():  # the standard ignores a relative path, which would depend on where one starts
        return Path(declared) / "assay"
    try:
        return Path.home() / ".cache" / "assay"
    except RuntimeError:
        raise FileNotFoundError(errno.ENOENT, "there is no home directory", "~/.cache") from None
