"""Hold the API keys of a running service, and read them again when their file changes."""

import asyncio
import logging
from pathlib import Path

from assay_service.errors import StartError
from assay_service.keys import Key, read_key_file

_POLL_S = 1.0
# What a file is known by: time of its last change in ns, size, and number. A mounted secret is a link to a new file.
_Version = tuple[int, int, int]

_log = logging.getLogger("assay")


class KeyStore:
    """The keys of one key file.

    Args:
        path: path of the key file.

    Raises:
        StartError: the file cannot be read, or is not a key file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = self._find_version()
        self._file = read_key_file(path)

    def find(self, sent: bytes) -> Key | None:
        """Return the key that a client sent, or None."""
        return self._file.find(sent)

    def reload(self) -> None:
        """Read the file again; if that fails, log an error and keep the keys."""
        self._version = self._find_version()  # before the file is read, so that a later change is not missed
        try:
            self._file = read_key_file(self._path)
        except StartError as error:
            _log.error("the keys are unchanged, because their file is wrong: %s", error.message)
            return
        _log.info("keys read again: %d in %s", len(self._file.keys), self._path)

    async def watch(self) -> None:
        """Read the file again whenever it has changed, until the task is cancelled."""
        while True:
            await asyncio.sleep(_POLL_S)
            if self._find_version() != self._version:
                self.reload()

    def _find_version(self) -> _Version | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
