"""The times of one request: phases by hand, and the header, metrics and log line that are made of them."""

import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from assay_service import create_app
from assay_service.telemetry.timings import Timings

ITEMS = [{"prompt": "hello", "completion": text} for text in ("he", "hell", "lo")]


def test_queue_and_compute_together_last_from_the_submission_to_the_last_pass() -> None:
    timings = Timings(arrived_s=10.0, rendering_s=10.5, submitted_s=11.0, sequences=3, cached=1)
    timings.add_pass(12.0, 12.25)
    timings.add_pass(12.0, 12.25)  # another of its sequences in the same pass
    timings.add_pass(14.0, 15.0)
    assert timings.measure_phases() == {"render": 0.5, "queue": 2.75, "compute": 1.25}
    assert (timings.computing_s, timings.computed_s, timings.passes) == (12.0, 15.0, 2)
    assert timings.format_header(15.5) == (
        "render;dur=500.000, queue;dur=2750.000, compute;dur=1250.000, total;dur=5500.000"
    )


def test_of_a_pass_that_ran_already_only_the_rest_counts() -> None:
    timings = Timings(arrived_s=0.0, rendering_s=0.0, submitted_s=3.0, sequences=1)
    timings.add_pass(1.0, 5.0)
    assert timings.measure_phases() == {"render": 3.0, "queue": 0.0, "compute": 2.0}


@pytest.mark.parametrize(
    ("times", "phases"),
    [
        ({}, {}),  # a request that scores nothing
        ({"rendering_s": 1.0}, {}),
        ({"rendering_s": 1.0, "submitted_s": 2.0}, {"render": 1.0}),  # refused by the queue
        ({"rendering_s": 1.0, "submitted_s": 2.0, "sequences": 2, "cached": 1}, {"render": 1.0}),  # its time ended
        (
            {"rendering_s": 1.0, "submitted_s": 2.0, "sequences": 2, "cached": 2},
            {"render": 1.0, "queue": 0.0, "compute": 0.0},
        ),
    ],
)
def test_only_phases_that_have_ended_have_a_time(times: dict[str, Any], phases: dict[str, float]) -> None:
    assert Timings(arrived_s=0.5, **times).measure_phases() == phases


def read_header(answer: Any) -> dict[str, float]:
    parts = [re.fullmatch(r"(\w+);dur=(\d+\.\d{3})", part) for part in answer.headers["server-timing"].split(", ")]
    return {part[1]: float(part[2]) for part in parts if part is not None}


def test_header_and_metrics_are_of_the_same_times(tiny: dict[str, Any]) -> None:
    app = create_app(tiny["settings"])
    with TestClient(app) as client:
        first = read_header(client.post("/v1/score", json={"items": ITEMS}))
        again = read_header(client.post("/v1/score", json={"items": ITEMS}))
        assert list(first) == list(again) == ["render", "queue", "compute", "total"]
        assert first["compute"] > 0
        assert first["render"] > 0
        assert first["render"] + first["queue"] + first["compute"] <= first["total"] + 0.001
        assert (again["queue"], again["compute"]) == (0, 0)  # cached
        assert list(read_header(client.get("/info"))) == ["total"]
        assert list(read_header(client.post("/v1/score", json={}))) == ["total"]
        text = client.get("/metrics").text
    for phase in ("render", "queue", "compute"):
        assert f'assay_phase_seconds_count{{phase="{phase}"}} 2.0' in text
        (total,) = re.findall(rf'assay_phase_seconds_sum{{phase="{phase}"}} (\S+)', text)
        assert float(total) * 1000 == pytest.approx(first[phase] + again[phase], abs=0.0015)


def test_every_token_is_computed_shared_cached_or_of_another_request(tiny: dict[str, Any]) -> None:
    shared = [{"prompt": "hello hello hello", "completion": text} for text in ("he", "lo", "he")]
    with TestClient(create_app(tiny["settings"])) as client:
        rendered = client.post("/v1/render", json={"items": shared, "model": "pref"}).json()["data"]
        for _ in range(2):
            assert client.post("/v1/score", json={"items": shared, "model": "pref"}).status_code == 200
        text = client.get("/metrics").text
    tokens = [len(row["signals"]["pref"]["ids"]) for row in rendered]
    prompt = rendered[0]["signals"]["pref"]["boundary"]
    expected = {
        "computed": tokens[0] + tokens[1] - prompt,
        "shared": prompt,
        "in_flight": tokens[2],
        "cached": sum(tokens),
    }
    for source, number in expected.items():
        assert f'assay_tokens_total{{source="{source}"}} {float(number)}' in text


def test_requests_without_an_answer_are_counted_by_code_and_models_are_named(tiny: dict[str, Any]) -> None:
    with TestClient(create_app(tiny["settings"])) as client:
        client.post("/v1/score", json={})
        client.post("/v1/score", json={"items": ITEMS, "model": "none"})
        client.get("/nowhere")
        text = client.get("/metrics").text
    for code in ("invalid_request", "model_not_found", "not_found"):
        assert f'assay_refused_requests_total{{code="{code}"}} 1.0' in text
    (line,) = [line for line in text.splitlines() if line.startswith("assay_model_info{") and 'signal="enc"' in line]
    assert 'kind="preference"' in line
    assert re.search(r'revision="[0-9a-f]{64}"', line)
    assert 'adapter_sha256=""' in line
