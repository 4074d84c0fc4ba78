"""`assay serve` as a process on loopback, with the real synchronous client and the real command line."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from assay_client.client import RewardClient
from assay_client.errors import AssayError

ASSAY = Path(sys.executable).with_name("assay")
START_S = 120


@contextmanager
def served(config: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
        with RewardClient(url, chunk_size=60, max_retries=0) as last, ThreadPoolExecutor(1) as pool:
            in_flight = pool.submit(last.score, items[:60])
            time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            # Where the signal was faster than the request, an error is right, and a number would not be.
            with contextlib.suppress(AssayError):
                assert in_flight.result().scores() == pytest.approx(expected[:60], abs=1e-5)
        assert process.wait(30) in (0, -signal.SIGTERM)
        with pytest.raises(AssayError), RewardClient(url, max_retries=0) as late:
            late.score(items[:1])


def test_a_configuration_that_is_wrong_ends_with_one_line(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "service.yaml"
    config.write_text(f"signals: {{a: {{base: {tiny['root']}/base, kind: preference, eos: template}}}}\ndefault: a\n")
    done = subprocess.run([ASSAY, "serve", "--config", config], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("assay serve: signals.a: unfinished: declare it")
