"""The sample log: what is written, which requests are chosen, rotation, retention, and a disk that is full."""

import json
import logging
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from assay_service import create_app
from assay_service.operation_settings import SamplesSettings
from assay_service.telemetry.metrics import Metrics
from assay_service.telemetry.sample_log import SampleLog, choose_request
from tests.training.test_full_disk import limited


def count(metrics: Metrics, result: str) -> float:
    return metrics._registry.get_sample_value("assay_samples_total", {"result": result}) or 0.0


def write(path: Path, metrics: Metrics, numbers: range, **settings: Any) -> None:
    samples = SampleLog(SamplesSettings(path=str(path), **settings), path, metrics)
    for number in numbers:
        samples.add({"number": number, "text": "x" * 60})
    samples.close()


def read(path: Path) -> list[int]:
    return [json.loads(line)["number"] for line in path.read_text().splitlines()]


def test_the_items_of_chosen_requests_are_written_whole(tiny: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    settings = tiny["settings"].model_copy(update={"samples": SamplesSettings(path=str(path), share=0.5)})
    items = [{"prompt": "hello", "completion": "he"}, {"prompt": "hello", "completion": "hé"}]
    ids = [f"request-{n}" for n in range(12)]
    with TestClient(create_app(settings)) as client:
        bodies = {
            name: client.post("/v1/score", json={"items": items}, headers={"X-Request-ID": name}).json() for name in ids
        }
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    chosen = [name for name in ids if choose_request(name, 0.5)]
    assert 0 < len(chosen) < len(ids)
    assert [(line["request_id"], line["index"]) for line in lines] == [(name, n) for name in chosen for n in (0, 1)]
    for line in lines:
        row = bodies[line["request_id"]]["data"][line["index"]]
        assert (line["blend"], line["score"]) == ("mix", row["score"])
        assert line["logits"] == {name: value["logit"] for name, value in row["signals"].items()}
        assert items[line["index"]]["completion"] in line["texts"][0]["text"]
        assert sorted(name for text in line["texts"] for name in text["signals"]) == ["abs", "pref"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_share_of_requests_is_the_declared_one() -> None:
    chosen = sum(choose_request(f"id-{n}", 0.1) for n in range(10_000))
    assert 850 < chosen < 1150
    assert all(choose_request(f"id-{n}", 1.0) for n in range(100))


def test_files_rotate_and_the_oldest_are_deleted(tmp_path: Path) -> None:
    path, metrics = tmp_path / "s", Metrics()
    write(path, metrics, range(10), max_bytes=300, files=3)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["s", "s.1", "s.2"]
    kept = [number for name in ("s.2", "s.1", "s") for number in read(tmp_path / name)]
    assert kept == list(range(10 - len(kept), 10))
    assert all(file.stat().st_size <= 300 for file in tmp_path.iterdir())
    old = time.time() - 3 * 24 * 3600
    os.utime(tmp_path / "s.2", (old, old))
    write(path, metrics, range(10, 11), max_bytes=10_000, files=3, max_age_days=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["s", "s.1"]
    assert count(metrics, "written") == 11


def test_a_full_disk_is_counted_and_logged_once_and_leaves_whole_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, metrics = tmp_path / "s", Metrics()
    with caplog.at_level(logging.WARNING, "assay"), limited(300):  # in the middle of a line
        write(path, metrics, range(10))
    assert count(metrics, "failed") + count(metrics, "written") == 10
    assert read(path) == list(range(int(count(metrics, "written"))))
    assert count(metrics, "failed") > 0
    (record,) = caplog.records
    assert "samples cannot be written" in record.getMessage()
    write(path, metrics, range(10, 11))
    assert read(path)[-1] == 10
