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
from collections.abc import Iterator
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
from assay_service.scoring.layout import Sequence
from assay_service.scoring.model import RewardModel

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


def test_a_configuration_that_is_wrong_ends_with_one_line(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "service.yaml"
    config.write_text(f"signals: {{a: {{base: {tiny['root']}/base, kind: preference, eos: template}}}}\ndefault: a\n")
    done = subprocess.run([ASSAY, "serve", "--config", config], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("assay serve: signals.a: unfinished: declare it")


def test_a_failed_device_ends_the_service_with_an_error(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be answered is answered, nothing new is computed, and whoever restarts processes sees a failure."""
    honest, broken = RewardModel.logits, threading.Event()

    def failing(self: RewardModel, sequences: list[Sequence], name: str) -> torch.Tensor:
        if broken.is_set():
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return honest(self, sequences, name)

    monkeypatch.setattr(RewardModel, "logits", failing)
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
            cli.serve(tiny["root"] / "service.yaml", "127.0.0.1", port)
        score, answer = talked.result(START_S)
    assert ended.value.exit_code == 1
    assert answer["data"][0]["score"] == score
    assert (answer["data"][1]["error"]["code"], answer["data"][1]["error"]["retryable"]) == ("forward_failed", True)
