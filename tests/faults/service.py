"""Real processes of `assay serve` with random models of tiny sizes, and what the tests ask them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from assay_client.client import RewardClient
from tests import checkpoints
from tests.service.test_serve_process import free_port

ASSAY = Path(sys.executable).with_name("assay")
START_S = 480  # a machine that is busy with other tests loads torch slowly
SIGNAL = {"kind": "preference", "score_position": "last_token", "eos": "template", "unfinished": "score"}
# About 10,000 tokens/s on one core: a request of a few hundred takes long enough to be hit by a fault.
SLOW = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "max_position_embeddings": 1024}


@dataclass
class Service:
    """A process of `assay serve`.

    Attributes:
        command: its command line, by which `restart` starts it on the same port.
        process: the process.
        log: file of its log; a restarted process appends.
    """

    url: str
    command: Sequence[str]
    env: Mapping[str, str]
    log: Path
    process: "subprocess.Popen[bytes]"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def rss_bytes(self) -> int:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(self.command, env=self.env, stderr=stream, stdout=stream)

    def wait_until_ready(self) -> None:
        until_s = time.monotonic() + START_S
        with RewardClient(self.url) as client:
            while not client.ready():
                assert self.process.poll() is None, self.read_log()
                assert time.monotonic() < until_s, self.read_log()
                time.sleep(0.2)

    def read_metric(self, name: str) -> float:
        """Sum of the samples whose line begins with `name`."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def read_log(self) -> str:
        """The log so far; empty if it is a device and no file."""
        return self.log.read_text() if self.log.is_file() else ""

    def find_crashes(self) -> list[str]:
        """Lines of the log that no fault of a client or of the network explains."""
        return re.findall(r".*(?:Traceback|internal error|Exception in ASGI|request \w+ failed).*", self.read_log())


def make_config(root: Path, limits: Mapping[str, Any], **sizes: Any) -> Path:
    """Write a random reward model and the configuration that serves it; return the configuration's path."""
    fast = checkpoints.decoder_tokenizer()
    checkpoints.save(root / "rm", checkpoints.classifier("llama", fast, **sizes), fast)
    config = root / "service.yaml"
    config.write_text(yaml.safe_dump({"signals": {"rm": {"base": "rm", **SIGNAL}}, "limits": dict(limits)}))
    return config


@contextmanager
def serve(
    configs: Sequence[Path],
    *options: str,
    env: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
    log: Path | None = None,
) -> Iterator[list[Service]]:
    """Start one process for each configuration at the same time, and yield them when all are ready.

    Args:
        env: more variables of the environment.
        within: the beginning of the command line, such as `unshare` with its options.
        log: where all of them write their log; each has a file of its own beside its configuration without it.
    """
    with ExitStack() as stack:
        services = []
        for number, config in enumerate(configs):
            port = free_port()
            command = [*within, str(ASSAY), "serve", "--config", str(config), "--port", str(port), *options]
            environment = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1", **(env or {})}
            path = config.with_name(f"{port}-{number}.log") if log is None else log
            with path.open("ab") as stream:
                process = subprocess.Popen(command, env=environment, stderr=stream, stdout=stream)
            services.append(Service(f"http://127.0.0.1:{port}", command, environment, path, process))
            stack.callback(services[-1].kill)
        for service in services:
            service.wait_until_ready()
        yield services


def until(true: Any, within_s: float = 60) -> None:
    """Wait until `true()` is, and fail after `within_s`."""
    end_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.02)
