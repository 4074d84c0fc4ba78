"""Readiness while work stalls, and what happens to requests when the service ends."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi.testclient import TestClient

from assay_service import cli
from assay_service.api import app as app_module
from assay_service.api.app import create_app
from assay_service.engine.fault import Fault
from assay_service.engine.progress import Progress
from assay_service.operation_settings import LifecycleSettings
from assay_service.scoring.layout import TokenSequence
from assay_service.scoring.model import RewardModel
from tests.service.test_serve_process import ASSAY, START_S, free_port

WAIT_S = 300  # other processes may have the machine


class Gate:
    """A model that waits: `close` it, and the next forward pass waits until `open`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._opened, self.entered = threading.Event(), threading.Event()
        self._opened.set()
        honest = RewardModel.outputs

        def wait(model: RewardModel, sequences: list[TokenSequence], names: Sequence[str]) -> list[torch.Tensor]:
            if not self._opened.is_set():
                self.entered.set()
                assert self._opened.wait(WAIT_S)
            return honest(model, sequences, names)

        monkeypatch.setattr(RewardModel, "outputs", wait)

    def close(self) -> None:
        self.entered.clear()
        self._opened.clear()

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


def wait_for(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def body(completion: str, count: int = 1) -> dict[str, Any]:
    items = [{"prompt": "bake?", "completion": f"{completion} {i}"} for i in range(count)]
    return {"items": items, "model": "pref"}


def read_metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(f"{name} ")))


def test_a_pass_or_waiting_work_that_takes_too_long_is_a_stall_until_something_is_finished() -> None:
    progress = Progress(max_forward_s=60)
    assert progress.explain_stall(0, 1e9) is None  # nothing to do
    progress.wait(100)
    assert progress.explain_stall(1, 160) is None
    assert progress.explain_stall(3, 161) == (
        "3 sequences wait, and none was finished for 61.0 s (lifecycle.max_forward_s is 60)"
    )
    progress.begin_pass(161)
    assert progress.explain_stall(3, 221) is None  # the pass itself is within the limit
    reason = progress.explain_stall(0, 222.5)
    assert reason == "a forward pass has run for 61.5 s (lifecycle.max_forward_s is 60)"
    progress.end_pass(223)
    assert progress.explain_stall(3, 283) is None
    assert progress.explain_stall(3, 283.5) is not None
    progress.wait(1000)  # an idle hour does not count for the work after it
    assert progress.explain_stall(1, 1001) is None


def test_ready_is_false_while_a_forward_pass_stalls_and_true_when_it_ends(tiny: dict[str, Any], gate: Gate) -> None:
    settings = tiny["settings"].model_copy(update={"lifecycle": LifecycleSettings(max_forward_s=0.3)})
    with TestClient(create_app(settings)) as http, ThreadPoolExecutor(1) as pool:
        assert http.get("/ready").status_code == 200
        gate.close()
        scored = pool.submit(http.post, "/v1/score", json=body("bread"))
        assert gate.entered.wait(WAIT_S)
        wait_for(lambda: http.get("/ready").status_code == 503)
        error = http.get("/ready").json()["error"]
        assert error["code"] == "not_ready"
        assert error["message"].startswith("a forward pass has run for ")
        assert http.get("/health").status_code == 200  # a restart would lose the work
        gate.open()
        assert "score" in scored.result(WAIT_S).json()["data"][0]
        assert http.get("/ready").status_code == 200


def test_a_probe_that_waits_behind_a_long_pass_does_not_fail(
    tiny: dict[str, Any], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "PROBE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(app_module, "RECENT_FORWARD_S", 0.0)  # every call probes
    with TestClient(create_app(tiny["settings"])) as http, ThreadPoolExecutor(1) as pool:
        gate.close()
        scored = pool.submit(http.post, "/v1/score", json=body("cake"))
        assert gate.entered.wait(WAIT_S)
        assert http.get("/ready").json() == {"status": "ready"}
        gate.open()
        assert scored.result(WAIT_S).status_code == 200


def test_an_error_of_a_device_that_works_no_more_is_its_failure_whatever_its_class() -> None:
    cublas = RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`")
    assert Fault.classify(cublas, is_device_working=False).device
    assert not Fault.classify(cublas, is_device_working=True).device
    assert Fault.classify(torch.AcceleratorError("device-side assert triggered"), is_device_working=True).device
    assert not Fault.classify(torch.OutOfMemoryError("CUDA out of memory"), is_device_working=True).device
    assert Fault.classify(torch.OutOfMemoryError("CUDA out of memory"), is_device_working=False).device


ASSERTED = """
import torch
from assay_service.engine.fault import Fault, is_device_working

device = torch.device("cuda")
assert is_device_working(device)
try:
    torch.zeros(4, device=device)[torch.tensor([9], device=device)].cpu()
except Exception as error:
    print(Fault.classify(RuntimeError(str(error)), is_device_working=is_device_working(device)).device)
"""


@pytest.mark.gpu
def test_a_real_assertion_of_a_cuda_kernel_is_the_failure_of_its_device() -> None:
    """In a process of its own, whose device works no more afterwards."""
    done = subprocess.run([sys.executable, "-c", ASSERTED], check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_sigterm_refuses_what_comes_finishes_what_is_there_and_ends_with_0(tiny: dict[str, Any], gate: Gate) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/ready").status_code == 200
        return False

    def talk(pool: ThreadPoolExecutor) -> tuple[list[httpx.Response], dict[str, httpx.Response]]:
        running: Future[httpx.Response] = pool.submit(httpx.post, f"{url}/v1/score", json=body("bread"), timeout=WAIT_S)
        assert gate.entered.wait(WAIT_S)
        queued = pool.submit(httpx.post, f"{url}/v1/score", json=body("cake", 5), timeout=WAIT_S)
        wait_for(lambda: read_metric(url, "assay_queue_items") == 5)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{url}/ready").status_code == 503)
        late = {path: httpx.get(f"{url}{path}") for path in ("/ready", "/health", "/metrics")}
        late["/v1/score"] = httpx.post(f"{url}/v1/score", json=body("pie"))
        late["/compat/tei/predict"] = httpx.post(f"{url}/compat/tei/predict", json={"inputs": "pie"})
        gate.open()
        return [running.result(WAIT_S), queued.result(WAIT_S)], late

    def talk_to_the_end(pool: ThreadPoolExecutor) -> tuple[list[httpx.Response], dict[str, httpx.Response]]:
        wait_for(is_ready)
        gate.close()
        try:
            return talk(pool)
        except BaseException:  # else the service below would never end
            gate.open()
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    with ThreadPoolExecutor(3) as pool:
        talked = pool.submit(talk_to_the_end, pool)
        cli.serve(config=tiny["root"] / "service.yaml", port=port)  # raises for another exit code than 0
        finished, late = talked.result(WAIT_S)
    assert [[("score" in row) for row in answer.json()["data"]] for answer in finished] == [[True], [True] * 5]
    assert {path: answer.status_code for path, answer in late.items()} == {
        "/ready": 503, "/health": 200, "/metrics": 200, "/v1/score": 503, "/compat/tei/predict": 429,
    }  # fmt: skip
    refused = late["/v1/score"]
    assert (refused.json()["error"]["code"], refused.json()["error"]["retryable"]) == ("not_ready", True)
    assert refused.json()["error"]["message"] == "the service is shutting down"
    assert refused.headers["connection"] == "close"
    assert refused.headers["x-request-id"] == refused.json()["error"]["request_id"]
    assert "error_type" in late["/compat/tei/predict"].json()  # the form and the status are those of the wire
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


STUCK = """
import sys, time
from pathlib import Path
from assay_service import cli
from assay_service.scoring.model import RewardModel

stuck, honest = Path(sys.argv[1]), RewardModel.outputs

def wait(self, sequences, names):
    while stuck.exists():
        time.sleep(0.05)
    return honest(self, sequences, names)

RewardModel.outputs = wait
cli.app(["serve", *sys.argv[2:]])
"""


@pytest.mark.slow
def test_what_a_drain_cannot_finish_is_answered_and_the_exit_code_says_so(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A pass that never ends, a request behind it, and a client that never finishes its body."""
    config = (tiny["root"] / "service.yaml").read_text() + "\nlifecycle: {drain_s: 0.5}\n"
    (tiny["root"] / "short_drain.yaml").write_text(config)
    port, log = free_port(), tmp_path / "log"
    url, arguments = f"http://127.0.0.1:{port}", ["--config", tiny["root"] / "short_drain.yaml", "--port", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-c", STUCK, tmp_path / "stuck", *arguments], stderr=stream)

    def is_ready() -> bool:
        assert process.poll() is None
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/ready").status_code == 200
        return False

    try:
        wait_for(is_ready)
        (tmp_path / "stuck").touch()
        with ThreadPoolExecutor(2) as pool, socket.create_connection(("127.0.0.1", port)) as slow:
            taken = read_metric(url, "assay_queue_seconds_count")
            running = pool.submit(httpx.post, f"{url}/v1/score", json=body("bread"), timeout=WAIT_S)
            wait_for(lambda: read_metric(url, "assay_queue_seconds_count") > taken)
            queued = pool.submit(httpx.post, f"{url}/v1/score", json=body("cake", 5), timeout=WAIT_S)
            wait_for(lambda: read_metric(url, "assay_queue_items") == 5)
            slow.sendall(b"POST /v1/score HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{")
            time.sleep(0.2)
            process.terminate()
            answers = [running.result(WAIT_S), queued.result(WAIT_S)]
            slow.settimeout(WAIT_S)
            assert slow.recv(100).startswith(b"HTTP/1.1 503 ")
            assert process.wait(WAIT_S) == 3
    finally:
        process.kill()
        process.wait()
    for answer in answers:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "not_ready"
    assert "3 requests in flight have 0.5 s to finish, new ones are refused" in log.read_text()
    assert "3 requests were not finished in time and are answered with 503" in log.read_text()
    assert "a forward pass or the loading of a signal still runs; the process ends without it" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_sigterm_while_the_models_load_ends_with_0(tiny: dict[str, Any]) -> None:
    command = [ASSAY, "serve", "--config", tiny["root"] / "service.yaml", "--port", str(free_port())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "listening on" in process.stderr.readline()
            process.terminate()
            assert process.wait(START_S) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
