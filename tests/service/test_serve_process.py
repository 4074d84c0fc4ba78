"""`assay serve` as a process on loopback, with the real synchronous client and the real command line."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import typer

from assay_client.client import RewardClient
from assay_client.errors import AssayError
from assay_service import cli
from assay_service.scoring.layout import TokenSequence
from assay_service.scoring.model import RewardModel
from tests.packages import publish

ASSAY = Path(sys.executable).with_name("assay")
START_S = 120


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def looked_up(url: str) -> float:
    """Sequences that the service has been asked for so far."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("assay_lookups_total"))


@contextmanager
def served(config: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    port = free_port()
    process = subprocess.Popen(
        [ASSAY, "serve", "--config", config, "--port", str(port)], env=os.environ | {"NO_COLOR": "1"}
    )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def wait_until_ready(client: RewardClient, process: "subprocess.Popen[bytes]") -> None:
    until_s = time.monotonic() + START_S
    while not client.ready():
        assert process.poll() is None, "the service ended"
        assert time.monotonic() < until_s
        time.sleep(0.2)


@pytest.mark.slow
def test_a_process_serves_drains_and_ends(tiny: dict[str, Any], tmp_path: Path) -> None:
    items = [("bake?", f"bread {i}") for i in range(300)]
    with served(tiny["root"] / "service.yaml") as (url, process), RewardClient(url, chunk_size=50) as client:
        wait_until_ready(client, process)
        expected = client.score(items).scores()
        assert len(set(expected)) > 250

        rows = tmp_path / "items.jsonl"
        rows.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in items))
        done = subprocess.run(
            [ASSAY, "score", rows, "-o", tmp_path / "out.jsonl", "--url", url], check=True, capture_output=True
        )
        assert done.returncode == 0
        written = [json.loads(line)["score"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert written == pytest.approx(expected, abs=1e-5)

        # In-flight work is finished after SIGTERM; new connections are then refused, and no number is made up.
        fresh = [("bake?", f"cake {i} " + "and wait " * 20) for i in range(60)]
        before = looked_up(url)
        with RewardClient(url, chunk_size=60, max_retries=0) as last, ThreadPoolExecutor(1) as pool:
            in_flight = pool.submit(last.score, fresh)
            while looked_up(url) == before:
                assert not in_flight.done()
            process.send_signal(signal.SIGTERM)
            assert len(set(in_flight.result().scores())) > 50
        assert process.wait(30) in (0, -signal.SIGTERM)
        with pytest.raises(AssayError), RewardClient(url, max_retries=0) as late:
            late.score(items[:1])


@pytest.mark.slow
def test_a_service_without_a_cache_removes_what_it_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "site")
    (tmp_path / "t").mkdir()
    signal_keys = {
        "base": "package:tiny_model", "kind": "preference", "score_position": "last_token", "eos": "template",
        "unfinished": "score", "max_length": 100, "head": {"tokens": [5, 6]},
    }  # fmt: skip
    (tmp_path / "service.yaml").write_text(json.dumps({"signals": {"s": signal_keys}}))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), *sys.path]))
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")  # nobody can write there
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    with served(tmp_path / "service.yaml") as (url, process), RewardClient(url) as client:
        wait_until_ready(client, process)
        assert client.score([("he", "ll")]).scores()[0] is not None
        assert list((tmp_path / "t").glob("assay-tiny_model-*/tiny_model-*/model.safetensors"))
        process.terminate()
        process.wait(START_S)
    assert not list((tmp_path / "t").glob("assay-*"))


def test_a_port_that_is_taken_ends_the_command_before_anything_is_loaded() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = subprocess.run([ASSAY, "serve", "--port", str(port)], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        f"assay serve: address already in use: is another service running on 127.0.0.1:{port}? Stop it, or use --port\n"
    )


@pytest.mark.slow
def test_what_inspect_writes_is_served_and_the_log_says_how_without_any_text(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    """From a directory to scores, as a new user goes; with logs for machines."""
    declared = ["--kind", "preference", "--eos", "template", "--unfinished", "error", "--token-types", "zero"]
    inspected = subprocess.run(
        [ASSAY, "inspect", tiny["root"] / "enc", *declared], check=True, capture_output=True, text=True
    )
    (tmp_path / "service.yaml").write_text(inspected.stdout)
    log = tmp_path / "log"
    port = free_port()
    command = [str(ASSAY), "serve", "--config", str(tmp_path / "service.yaml"), "--port", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen([*command, "--access-log", "--log-format", "json"], stderr=stream)
    url = f"http://127.0.0.1:{port}"
    try:
        with RewardClient(url) as client:
            until_s = time.monotonic() + START_S
            while True:  # taken at once, and not ready for as long as torch is being imported
                with contextlib.suppress(httpx.TransportError):
                    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
                    first = httpx.post(f"{url}/v1/score", content=b"{}")
                    break
                assert time.monotonic() < until_s
            assert (first.status_code, first.json()["error"]["code"]) == (503, "not_ready")
            assert first.headers["retry-after"] == "5"
            wait_until_ready(client, process)
            client.score([("a secret question", "a secret answer")] * 3)
    finally:
        process.terminate()
        process.wait(START_S)
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    said = [line["message"] for line in lines if line["logger"] == "assay.start"]
    for number, beginning in enumerate(
        (f"listening on {url}", "importing torch", "hashing the weights", "loading base", "testing that")
    ):
        assert [s for s in said if not s.startswith("still ")][number].startswith(beginning)
    assert any(
        s.startswith(
            "signal enc: preference, reads pooler, up to 256 tokens, float32 weights, computes in float32 on cpu"
        )
        for s in said
    )
    assert any(s.startswith("ready in ") and s.endswith(url) for s in said)
    (scored,) = [line for line in lines if line.get("route") == "/v1/score"]
    assert (scored["method"], scored["status"], scored["items"]) == ("POST", 200, 3)
    assert len(scored["request_id"]) == 32
    assert scored["ms"] > 0
    assert "secret" not in text


def test_a_failed_device_ends_the_service_with_an_error(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be answered is answered, nothing new is computed, and whoever restarts processes sees a failure."""
    honest, broken = RewardModel.outputs, threading.Event()

    def failing(self: RewardModel, sequences: list[TokenSequence], names: Sequence[str]) -> list[torch.Tensor]:
        if broken.is_set():
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return honest(self, sequences, names)

    monkeypatch.setattr(RewardModel, "outputs", failing)
    port = free_port()

    def talk() -> tuple[float, dict[str, Any]]:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_S) as http:
            until_s = time.monotonic() + START_S
            while time.monotonic() < until_s:
                with contextlib.suppress(httpx.TransportError):
                    if http.get("/ready").status_code == 200:
                        break
                time.sleep(0.05)
            good = {"prompt": "bake?", "completion": "yes"}
            score = http.post("/v1/score", json={"items": [good]}).json()["data"][0]["score"]
            broken.set()
            items = [good, {"prompt": "bake?", "completion": "no"}]
            return score, http.post("/v1/score", json={"items": items}).json()

    with ThreadPoolExecutor(1) as pool:
        talked = pool.submit(talk)
        with pytest.raises(typer.Exit) as ended:
            cli.serve(config=tiny["root"] / "service.yaml", port=port)
        score, answer = talked.result(START_S)
    assert ended.value.exit_code == 1
    assert answer["data"][0]["score"] == score
    assert (answer["data"][1]["error"]["code"], answer["data"][1]["error"]["retryable"]) == ("forward_failed", True)
