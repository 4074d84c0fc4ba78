"""Write the texts and scores of a share of the requests to a file, for people who look for reward hacking.

A thread of its own writes. A request never waits for the disk, and never fails because of it.
"""

import hashlib
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from assay_service.operation_settings import SamplesSettings
from assay_service.telemetry.metrics import Metrics

# Lines that wait for the disk; further ones are dropped and counted.
_WAITING_LINES = 10_000
_HOUR_S = 3600.0

_log = logging.getLogger("assay")


def choose_request(request_id: str, share: float) -> bool:
    """Return whether the items of a request are written: the same for every replica, and after every restart."""
    number = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big")
    return number < share * 2**64


class SampleLog:
    """A writer of sampled items.

    Args:
        settings: share, and limits of the files.
        path: file of the newest lines.
        metrics: the counter of lines.
    """

    def __init__(self, settings: SamplesSettings, path: Path, metrics: Metrics) -> None:
        self._settings, self._path, self._metrics = settings, path, metrics
        self._lines: queue.Queue[Mapping[str, Any] | None] = queue.Queue(_WAITING_LINES)
        self._failing = False
        self._cleaned_s = -_HOUR_S
        self._thread = threading.Thread(target=self._work, name="assay-samples", daemon=True)
        self._thread.start()

    def chooses(self, request_id: str) -> bool:
        """Return whether the items of a request are written."""
        return choose_request(request_id, self._settings.share)

    def add(self, sample: Mapping[str, Any]) -> None:
        """Queue a line; it is dropped if too many wait for the disk."""
        try:
            self._lines.put_nowait({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **sample})
        except queue.Full:
            self._metrics.samples.labels("dropped").inc()

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._lines.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (sample := self._lines.get()) is not None:
            try:
                self._write(json.dumps(sample, ensure_ascii=False).encode(errors="replace") + b"\n")
            except OSError as error:
                self._metrics.samples.labels("failed").inc()
                if not self._failing:  # once, until a line is written again
                    _log.warning("samples cannot be written: %s; free disk space or check the path", error.strerror)
                self._failing = True
            else:
                self._metrics.samples.labels("written").inc()
                self._failing = False

    def _write(self, line: bytes) -> None:
        """Append a line to the file, after rotating it where it is full; a line is written whole or not at all.

        Raises:
            OSError: the line cannot be written.
        """
        if time.monotonic() - self._cleaned_s >= _HOUR_S:
            self._cleaned_s = time.monotonic()
            self._remove_old(time.time() - self._settings.max_age_days * 24 * _HOUR_S)
        if self._path.exists() and self._path.stat().st_size + len(line) > self._settings.max_bytes:
            self._rotate()
        # Texts of users: nobody else on the machine may read them.
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            before = os.fstat(file).st_size
            try:
                complete = os.write(file, line) == len(line)
            except OSError:
                os.ftruncate(file, before)
                raise
            if not complete:  # the disk had room for a part of it
                os.ftruncate(file, before)
                raise OSError(28, "no space left for a whole line")
        finally:
            os.close(file)

    def _list_files(self) -> list[Path]:
        """Return the paths of all files that may exist, the newest first."""
        older = (self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._settings.files))
        return [self._path, *older]

    def _rotate(self) -> None:
        files = self._list_files()
        files[-1].unlink(missing_ok=True)
        for newer, older in reversed(list(pairwise(files))):
            if newer.exists():
                newer.replace(older)

    def _remove_old(self, before: float) -> None:
        """Delete the files whose last line was written before a time, in seconds since 1970."""
        for path in self._list_files():
            if path.exists() and path.stat().st_mtime < before:
                path.unlink()
