"""nginx with the configuration of its page, in front of two running services."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from assay_client import RewardClient
from assay_service import create_app
from tests.compat.conftest import run_app
from tests.compat.examples import read_texts
from tests.compat.test_every_wire import TEXT
from tests.real_tokenizers import unavailable

START_S = 30


@contextmanager
def run_nginx(text: str, port: int, folder: Path) -> Iterator[str]:
    """Run nginx as this user, with all its files below `folder`."""
    folder.mkdir()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"pid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{paths}\n{text}\n}}\n"
    )
    binary = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")  # which users may not have in their path
    if binary is None:
        unavailable("nginx is not installed; Debian's package is nginx-light")
    command = [str(binary), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf", "-g", "daemon off;"]
    process = subprocess.Popen(command)
    try:
        end = time.monotonic() + START_S
        while not is_listening(port):
            assert process.poll() is None, (folder / "error.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def count_items(url: str) -> int:
    text = httpx.get(f"{url}/metrics").text
    return int(sum(float(n) for n in re.findall(r"^assay_items_total\S* (\S+)$", text, flags=re.M)))


def test_a_prompt_stays_on_one_server_behind_nginx(tiny: dict[str, Any], tmp_path: Path) -> None:
    text = "\n".join(read_texts("gateway-nginx", "nginx"))
    port, wire = find_free_port(), find_free_port()
    text = text.replace("listen 8081", f"listen 127.0.0.1:{wire}")
    with run_app(create_app(tiny["settings"])) as first, run_app(create_app(tiny["settings"])) as second:
        servers = (first.url, second.url)
        for name, url in zip(("gpu-0:8000", "gpu-1:8000"), servers, strict=True):
            assert name in text
            text = text.replace(name, url.removeprefix("http://"))
        with run_nginx(text.replace("listen 8080", f"listen 127.0.0.1:{port}"), port, tmp_path / "nginx") as address:
            used = []
            with RewardClient(address) as client:
                for prompt in (f"Question {number}?" for number in range(8)):
                    before = [count_items(url) for url in servers]
                    for completion in ("Yes.", "No.", "Perhaps."):
                        client.score([(prompt, completion)])
                    gained = [count_items(url) - old for url, old in zip(servers, before, strict=True)]
                    assert min(gained) == 0 < max(gained), "a prompt went to both servers"
                    used.append(gained.index(max(gained)))
            body = {"model": "pref", "input": TEXT}
            direct = httpx.post(f"{first.url}/compat/vllm/classify", json=body).raise_for_status().json()
            at_root = httpx.post(f"http://127.0.0.1:{wire}/classify", json=body).raise_for_status().json()
            assert at_root["data"] == direct["data"]
    assert set(used) == {0, 1}  # the prompts are spread
