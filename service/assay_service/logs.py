"""Write the service's log to stderr, as text or as JSON lines. It never holds a prompt or a completion."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

# The children of "assay": what happens until the service is ready, and one line per request.
START = "assay.start"
ACCESS = "assay.access"

# A part of the start that takes longer says that it still goes on: after this time, then after twice as long, …
_FIRST_REMINDER_S = 5.0
_LAST_REMINDER_S = 40.0


def configure(level: LogLevel, log_format: LogFormat, *, access: bool) -> None:
    """Let this process write its log. Of the whole process: for commands.

    Args:
        level: the least that is written; lines per request are written whatever it is.
        log_format: text for people, or one JSON object per line.
        access: whether every request has a line.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    for name, least in (("assay", level.upper()), ("uvicorn", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(least)
    logging.getLogger(ACCESS).setLevel(logging.INFO if access else logging.CRITICAL)
    # Says "No CUDA runtime is found" at the first import of torch's compiler tools on a machine without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


@contextmanager
def stage(message: str, *arguments: object) -> Iterator[None]:
    """Log a part of the start when it begins, and from time to time while it goes on.

    Args:
        message: begins with a verb ("loading …"); `%` places are for the arguments.
        arguments: as `logging` takes them.
    """
    log = logging.getLogger(START)
    log.info(message, *arguments)
    if not log.isEnabledFor(logging.INFO):
        yield
        return
    ended = threading.Event()

    def remind() -> None:
        started_s, pause_s = time.monotonic(), _FIRST_REMINDER_S
        while not ended.wait(pause_s):
            log.info("still " + message + ", for %.0f s", *arguments, time.monotonic() - started_s)
            pause_s = min(2 * pause_s, _LAST_REMINDER_S)

    thread = threading.Thread(target=remind, name="assay-start-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Limited:
    """Logs warnings of one kind at most once in ten seconds, with the number of those left out.

    Args:
        every_s: the least time between two lines of one kind.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._last_s: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def warning(self, kind: str, message: str, **fields: object) -> None:
        """Log a warning, or count it.

        Args:
            kind: warnings of one kind are limited together.
            message: for people.
            fields: written behind the message.
        """
        now_s = time.monotonic()
        if now_s - self._last_s.get(kind, -self._every_s) < self._every_s:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        self._last_s[kind] = now_s
        if left_out := self._left_out.pop(kind, 0):
            fields["more_since_the_last_line"] = left_out
        logging.getLogger("assay").warning(message, extra={"fields": fields})


class _Text(logging.Formatter):
    """One line for people: time of day, level above info, message, fields; at the start also the seconds so far."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        since = f" +{record.relativeCreated / 1000:.1f}s" if record.name == START else ""
        level = f" {record.levelname}" if record.levelno > logging.INFO else ""
        fields = "".join(f" {key}={value}" for key, value in _fields(record).items())
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{when}{since}{level} {record.getMessage()}{fields}{trace}"


class _Json(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.name == START:
            line["elapsed_s"] = round(record.relativeCreated / 1000, 1)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "fields", {})
