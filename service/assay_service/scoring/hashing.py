"""Hash files, and remember in this process what the large ones hash to."""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

# A smaller file can be written, hashed and written again within one tick of the file system's clock (4 ms).
_REMEMBERED_BYTES = 2**24


def hash_files(files: Iterable[Path]) -> str:
    """Return one SHA-256 over the bytes of `files`; for a single file, that file's own SHA-256.

    The weights of a base are hashed by several steps of a start, so large files that did not change are read once.
    """
    digests = []
    for path in files:
        status = path.stat()
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digests.append(_remember(path, state) if status.st_size >= _REMEMBERED_BYTES else _hash(path))
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@functools.lru_cache(maxsize=1024)
def _remember(path: Path, _state: tuple[int, ...]) -> str:
    """Return the SHA-256 of a file in this state, which is computed once."""
    return _hash(path)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
