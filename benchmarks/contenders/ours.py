"""Assay: the model alone (offline), and the service over HTTP with its own client."""

import subprocess
import sys
import time
from pathlib import Path

import yaml

from assay_client.client import RewardClient
from assay_service import loader, settings
from assay_service.engine.admission import QueueLimits
from assay_service.engine.engine import Engine
from assay_service.engine.job import Task
from assay_service.memory import keep_freed_memory
from assay_service.scoring.item import Item
from assay_service.telemetry.metrics import Metrics
from benchmarks.contenders.base import Contender, find_free_port
from benchmarks.workloads import Group

CHUNK = 64
START_S = 300


def write_configuration(model: Path, cache_bytes: int) -> Path:
    """Write the configuration of a service with the model as its one signal."""
    path = model / f"service-{cache_bytes}.yaml"
    signal = {"base": str(model), "kind": "preference", "eos": "template", "unfinished": "score", "dtype": "bfloat16"}
    limits = {"cache_bytes": cache_bytes}
    path.write_text(yaml.safe_dump({"signals": {"s": signal}, "default": "s", "limits": limits}))
    return path


class Offline(Contender):
    """The renderer and the engine of the service, without its HTTP: items are rendered while others are computed."""

    def __init__(self, model: Path) -> None:
        super().__init__(model)
        keep_freed_memory()  # as `assay serve` does
        given = settings.read_settings(write_configuration(model, 0))
        served = loader.load(given)
        assert served.invariant == {"s": True}, "a score that depends on the batch is not worth timing"
        self._trunk = served.trunks["s"]
        self._renderer = served.signals["s"].renderer
        self._metrics = Metrics()
        self._engine = Engine(
            max_batch_tokens=given.limits.max_batch_tokens,
            limits=QueueLimits(),
            cache_bytes=0,
            max_forward_s=given.lifecycle.max_forward_s,
            metrics=self._metrics,
            on_failure=lambda: None,
        )
        self._engine.start()

    @property
    def computed_tokens(self) -> float:
        """Count the tokens that were computed since the start."""
        (family,) = self._metrics.batch_tokens.collect()
        return sum(sample.value for sample in family.samples if sample.name.endswith("_sum"))

    def score(self, groups: list[Group]) -> list[float]:
        """Score in the batches that the service's planner makes."""
        items = [Item.of(group.prompt, completion) for group in groups for completion in group.completions]
        futures = []
        for start in range(0, len(items), CHUNK):
            sequences = [self._renderer.render(item).sequence for item in items[start : start + CHUNK]]
            futures += self._engine.submit([Task(self._trunk, sequence, None) for sequence in sequences])
        return [numbers[0] for future in futures for numbers in future.result() if numbers is not None]

    def close(self) -> None:
        """End the worker."""
        self._engine.stop()


class Http(Contender):
    """`assay serve` in a process of its own, asked by `RewardClient`."""

    served = True

    def __init__(self, model: Path, cache_bytes: int = 0) -> None:
        super().__init__(model)
        port = find_free_port()
        command = [str(Path(sys.executable).with_name("assay")), "serve", "--port", str(port)]
        self._process = subprocess.Popen([*command, "--config", str(write_configuration(model, cache_bytes))])
        self._client = RewardClient(f"http://127.0.0.1:{port}", chunk_size=CHUNK)
        until_s = time.monotonic() + START_S
        while not self._client.ready():
            assert self._process.poll() is None, "the service ended"
            assert time.monotonic() < until_s
            time.sleep(0.2)

    def score(self, groups: list[Group]) -> list[float]:
        """Send one request for each `CHUNK` items."""
        items = [(group.prompt, completion) for group in groups for completion in group.completions]
        return list(self._client.score(items).scores())

    def close(self) -> None:
        """End the service."""
        self._client.close()
        self._process.terminate()
        self._process.wait()


class Remembered(Http):
    """The same service with its cache, asked for items that it has already answered."""

    def __init__(self, model: Path) -> None:
        super().__init__(model, cache_bytes=64 * 2**20)

    def prepare(self, groups: list[Group]) -> None:
        """Ask for everything once, before the clock starts."""
        self.score(groups)
