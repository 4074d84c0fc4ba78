"""Lines of the log, for people and for machines, and how often they come."""

import io
import json
import logging
import sys
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from assay_service import create_app, logs
from assay_service.api import scoring


def record(name: str = "assay", level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord(name, level, __file__, 1, "said %s", ("this",), None)
    made.fields = fields
    return made


def test_a_line_for_people() -> None:
    line = logs._Text().format(record(status=200, ms=1.5))
    assert line[19:] == " said this status=200 ms=1.5"
    time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")
    assert logs._Text().format(record(level=logging.WARNING))[19:] == " WARNING said this"
    start = record(logs.START)
    start.relativeCreated = 12_345
    assert logs._Text().format(start)[19:] == " +12.3s said this"


def test_a_line_for_machines() -> None:
    made = record(logs.START, request_id="a")
    made.relativeCreated = 12_345
    try:
        raise ValueError("broken")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = json.loads(logs._Json().format(made))
    assert line.pop("time").endswith("+00:00")
    assert line.pop("exception").endswith("ValueError: broken")
    assert line == {
        "level": "info", "logger": "assay.start", "message": "said this", "request_id": "a", "elapsed_s": 12.3,
    }  # fmt: skip


def test_warnings_of_one_kind_are_counted_instead_of_repeated(caplog: pytest.LogCaptureFixture) -> None:
    limited = logs.LimitedWarnings(every_s=0.2)
    for _ in range(5):
        limited.warn("429", "full", status=429)
    limited.warn("499", "gone")
    time.sleep(0.25)
    limited.warn("429", "full", status=429)
    fields = [(r.getMessage(), vars(r)["fields"]) for r in caplog.records]
    assert fields == [("full", {"status": 429}), ("gone", {}), ("full", {"status": 429, "more_since_the_last_line": 4})]


def test_a_long_stage_says_that_it_goes_on(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_FIRST_REMINDER_S", 0.1)
    with caplog.at_level("INFO", logs.START), logs.log_step("loading %s", "rm"):
        time.sleep(0.4)
    said = [r.getMessage() for r in caplog.records]
    assert said[0] == "loading rm"
    assert said[1].startswith("still loading rm, for ")
    assert 2 <= len(said) <= 3  # after 0.1 s, and then after twice as long


def test_access_lines_do_not_depend_on_the_level() -> None:
    before = {n: (logging.getLogger(n).level, logging.getLogger(n).handlers) for n in ("assay", "uvicorn", logs.ACCESS)}
    try:
        logs.configure("error", "text", access=True)
        assert logging.getLogger(logs.ACCESS).isEnabledFor(logging.INFO)
        assert not logging.getLogger(logs.START).isEnabledFor(logging.INFO)
        logs.configure("debug", "text", access=False)
        assert not logging.getLogger(logs.ACCESS).isEnabledFor(logging.INFO)
    finally:
        for name, (level, handlers) in before.items():
            logging.getLogger(name).setLevel(level)
            logging.getLogger(name).handlers = handlers


def test_every_line_of_a_request_names_it(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also lines of code that knows no request, and of a crash; probes have a line only if they fail."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs._Json())
    logger = logging.getLogger("assay")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)

    def fail(*_: Any) -> None:
        logger.warning("inside")
        raise RuntimeError("broken")

    with TestClient(create_app(tiny["settings"]), raise_server_exceptions=False) as client:
        logging.getLogger(logs.ACCESS).setLevel(logging.INFO)
        written.truncate(0)
        for path in ("/health", "/ready", "/metrics"):
            assert client.get(path).status_code == 200
        assert not written.getvalue().strip("\0")
        client.get("/info", headers={"X-Request-ID": "one"})
        monkeypatch.setattr(scoring, "read_terms", fail)
        item = {"prompt": "hello", "completion": "secret"}
        assert client.post("/v1/score", json={"items": [item]}, headers={"X-Request-ID": "two"}).status_code == 500
        monkeypatch.setattr(type(client.app.state.scorer.engine), "alive", False)  # type: ignore[attr-defined]
        assert client.get("/health", headers={"X-Request-ID": "three"}).status_code == 503
    lines = [json.loads(line.strip("\0")) for line in written.getvalue().splitlines()]
    said = [(line["message"].partition(":")[0], line["request_id"]) for line in lines if "request_id" in line]
    assert said[0] == ("request", "one")
    assert {message for message, name in said if name == "two"} >= {"inside", "a request failed", "request"}
    assert ("request", "three") in said
    assert logs.REQUEST_ID.get() is None
    assert "secret" not in written.getvalue()
