"""Write the service's log to stderr, as text or as JSON lines; it never holds a prompt or a completion."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

# Children of the logger "assay": one for everything until the service is ready, one for a line per request.
START = "assay.start"
ACCESS = "assay.access"

# The request that is being answered, which every line about it then names.
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)

# A long step of the start logs that it still runs: after the first pause, then after pauses that double up to the last.
_FIRST_REMINDER_S = 5.0
_LAST_REMINDER_S = 40.0


def configure(level: LogLevel, log_format: LogFormat, *, access: bool) -> None:
    """Configure the log of the whole process; commands call it, the library does not.

    Args:
        level: lowest level that is written; it does not apply to the lines of requests.
        log_format: text for people, or one JSON object per line.
        access: True writes a line for every request but successful probes.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    # uvicorn's own lines about its start would repeat ours.
    for name, lowest in (("assay", level.upper()), ("uvicorn", "WARNING"), ("opentelemetry", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(lowest)
    logging.getLogger(ACCESS).setLevel(logging.INFO if access else logging.CRITICAL)
    # This logger warns "No CUDA runtime is found" when torch's compiler tools are imported without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


@contextmanager
def log_step(message: str, *arguments: object) -> Iterator[None]:
    """Log a step of the start when it begins, and from time to time while it runs.

    Args:
        message: text that begins with a verb ("loading …"), with `%` fields for the arguments.
        arguments: values of the `%` fields, as `logging` formats them.
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

    # The step itself blocks this thread, so another one writes the reminders.
    thread = threading.Thread(target=remind, name="assay-start-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class LimitedWarnings:
    """A log of warnings that writes each kind at most once in ten seconds, with the number of suppressed ones.

    Args:
        every_s: shortest time between two lines of one kind, in seconds.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._last_s: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def warn(self, kind: str, message: str, **fields: object) -> None:
        """Log a warning, or count it.

        Args:
            kind: key under which warnings are limited together.
            message: text of the warning.
            fields: fields that follow the message.
        """
        now_s = time.monotonic()
        if now_s - self._last_s.get(kind, -self._every_s) < self._every_s:
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return
        self._last_s[kind] = now_s
        if suppressed := self._suppressed.pop(kind, 0):
            fields["more_since_the_last_line"] = suppressed
        logging.getLogger("assay").warning(message, extra={"fields": fields})


class _Text(logging.Formatter):
    """A format of one line for people: time, level above info, message and fields.

    A line of the start also has the seconds since the process began.
    """

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        since = f" +{record.relativeCreated / 1000:.1f}s" if record.name == START else ""
        level = f" {record.levelname}" if record.levelno > logging.INFO else ""
        fields = "".join(f" {key}={value}" for key, value in _get_fields(record).items())
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{when}{since}{level} {record.getMessage()}{fields}{trace}"


class _Json(logging.Formatter):
    """A format of one JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_get_fields(record),
        }
        if record.name == START:
            line["elapsed_s"] = round(record.relativeCreated / 1000, 1)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _get_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of a line, with the id of the request in which it was written."""
    fields: dict[str, Any] = getattr(record, "fields", {})
    request_id = REQUEST_ID.get()
    return fields if request_id is None else {"request_id": request_id} | fields
