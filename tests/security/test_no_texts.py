"""No text of a request is in a log, a metric or an error, whatever is wrong with the request."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from assay_service import create_app
from assay_service.api.compat.mount import WIRES
from assay_service.scoring.model import RewardModel

MARK = "zqjv-marker"
TEXT = f"please {MARK} me"
# Every value and name that a client may put somewhere; the surrogate, NaN and depth break readers of JSON.
BODIES: list[bytes] = [
    *(
        json.dumps(body).encode()
        for body in (
            TEXT,
            [TEXT],
            {TEXT: TEXT},
            {"items": TEXT},
            {"items": [TEXT]},
            {"items": [{TEXT: TEXT}]},
            {"items": [{"prompt": TEXT}]},
            {"items": [{"prompt": TEXT, "completion": {TEXT: TEXT}}]},
            {"items": [{"prompt": TEXT, "completion": TEXT, "finish_reason": TEXT}]},
            {"items": [{"prompt": TEXT, "completion": f"{TEXT}<|im_start|>"}]},
            {"items": [{"prompt": TEXT, "completion": f"{TEXT} \ud800"}]},
            {"items": [{"prompt": [{"role": TEXT, "content": TEXT}], "completion": TEXT}]},
            {"items": [{"prompt": [{"role": "user", "content": TEXT, TEXT: TEXT}], "completion": TEXT}]},
            {"items": [{"prompt": [{"role": "user", "content": [{"type": TEXT, TEXT: TEXT}]}], "completion": TEXT}]},
            {"items": [{"prompt": TEXT + " long" * 100, "completion": TEXT}]},
            {"items": [{"prompt": "p", "completion": "c"}], "model": TEXT},
            {"items": [{"prompt": "p", "completion": "c"}], "weights": {TEXT: 1}},
            {"items": [{"prompt": "p", "completion": "c"}], "weights": {"pref": TEXT}},
            {"items": [{"prompt": TEXT, "completion": TEXT}] * 65},
            {"prompt": TEXT, "completions": [{TEXT: 1}]},
            {"prompt": TEXT, "completions": [TEXT] * 65},
            {"prompt": {TEXT: TEXT}, "a": TEXT, "b": TEXT},
            {"prompt": TEXT, "a": f"{TEXT}<|im_start|>", "b": TEXT},
            {"query": [TEXT], "prompts": ["other"]},
            {"query": TEXT, "documents": [{TEXT: TEXT}], "texts": [TEXT, 3]},
            {"query": TEXT, "documents": [TEXT], "model": TEXT, TEXT: 1},
            {"messages": [{"role": TEXT, "content": TEXT}], "model": TEXT},
            {"messages": [TEXT], "model": "pref"},
            {"input": [TEXT, 3], "model": TEXT},
            {"input": {TEXT: TEXT}, "inputs": {TEXT: TEXT}, "text": {TEXT: TEXT}},
            {"prompt": TEXT, "response": {TEXT: TEXT}},
            {"responses_create_params": {TEXT: TEXT}, "response": {TEXT: TEXT}},
            [{"id": TEXT, "messages": [{"role": "user", "content": TEXT}]}],
        )
    ),
    f'{{"items": "{MARK}"'.encode(),
    f'{{"{MARK}": 1, "{MARK}": 2}}'.encode(),
    f'{{"{MARK}": NaN}}'.encode(),
    f'{{"{MARK}": 1e999}}'.encode(),
    b"[" * 100_000 + MARK.encode(),
    b"\xff\xfe" + MARK.encode(),
    f'{{"items": "{MARK * 30_000}"}}'.encode(),
]
PATHS = ["/v1/score", "/v1/rank", "/v1/compare", "/v1/render"]
PATHS += [
    f"/compat/{wire.name}{route.path}".replace("{rollout_id}", MARK)
    for wire, router in WIRES.items()
    for route in router.routes
    if isinstance(route, APIRoute) and "POST" in (route.methods or ())
]


@pytest.fixture(scope="module")
def client(tiny: dict[str, Any]) -> Iterator[TestClient]:
    with TestClient(create_app(tiny["settings"]), raise_server_exceptions=False) as client:
        yield client


def read_errors(answer: Any) -> str:
    """What an answer says about errors: all of it, or the errors of single items of an answer with scores."""
    if answer.status_code != 200:
        return str(answer.text)
    body = answer.json()
    rows = [row for key in ("data", "errors") for row in body.get(key, [])] if isinstance(body, dict) else []
    return json.dumps([row["error"] for row in rows if isinstance(row, dict) and "error" in row])


def written(caplog: pytest.LogCaptureFixture) -> str:
    # The line of a test's own HTTP client has the address that the client asks for.
    records = [record for record in caplog.records if record.name.partition(".")[0] not in ("httpx", "httpx2")]
    return json.dumps([vars(record) | {"trace": str(record.exc_info)} for record in records], default=str)


@pytest.mark.parametrize("path", PATHS)
def test_no_error_and_no_log_repeats_a_text(path: str, client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    statuses = set()
    for kind in ("application/json", "text/plain", f"multipart/{MARK}"):
        for body in BODIES if kind == "application/json" else BODIES[:4]:
            answer = client.post(path, content=body, headers={"content-type": kind})
            statuses.add(answer.status_code)
            assert MARK not in read_errors(answer), body[:200]
    assert len(statuses) > 1 or "/tei/" in path  # several kinds of faults; TEI has one status for all of them
    assert caplog.records
    assert MARK not in written(caplog)
    assert MARK not in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/{}", "/v1/{}", "/compat/{}/score", "/compat/vllm/{}", "/playground/{}"])
def test_unknown_paths_and_queries_are_not_repeated(
    path: str, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    path = path.format(MARK)
    caplog.set_level(logging.DEBUG)
    for method in ("GET", "POST", "DELETE"):
        answer = client.request(method, f"{path}?{MARK}={MARK}", headers={MARK: MARK, "X-Request-ID": f"{MARK} {MARK}"})
        assert answer.status_code in (404, 405)
        assert MARK not in answer.text + str(answer.headers)
    assert MARK not in written(caplog)
    assert MARK not in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/v1/score", "/compat/vllm/score", "/compat/openrlhf/get_reward"])
def test_a_crash_is_answered_without_its_text(
    path: str, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The text of an exception may quote what it was about, and names files and addresses of memory."""

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"shared memory region at 0x7f, text {TEXT}")

    bodies = {
        "/v1/score": {"items": [{"prompt": "p", "completion": "c"}]},
        "/compat/vllm/score": {"model": "pref", "text_1": "p", "text_2": "c"},
        "/compat/openrlhf/get_reward": {"query": ["p"], "prompts": ["p"]},
    }
    with TestClient(create_app(tiny["settings"]), raise_server_exceptions=False) as client:
        monkeypatch.setattr(RewardModel, "outputs", fail)
        answer = client.post(path, json=bodies[path])
        for part in (MARK, "0x7f", "memory", "Traceback"):  # the name of the class is part of the message
            assert part not in answer.text
