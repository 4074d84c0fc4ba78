"""Assay: the model alone (offline), and the service over HTTP with its own client."""

import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from assay_client.client import RewardClient
from assay_service import loader, settings
from assay_service.engine.plan import Waiting, next_batch
from assay_service.scoring.item import Item
from benchmarks.contenders.base import Contender, free_port
from benchmarks.workloads import Group

BATCH_TOKENS = 2048
START_S = 300


def configuration(model: Path, cache_bytes: int) -> Path:
    """A service with the model as its one signal."""
    path = model / f"service-{cache_bytes}.yaml"
    signal = {"base": str(model), "kind": "preference", "eos": "template", "unfinished": "score", "dtype": "bfloat16"}
    limits = {"cache_bytes": cache_bytes, "max_batch_tokens": BATCH_TOKENS}
    path.write_text(yaml.safe_dump({"signals": {"s": signal}, "default": "s", "limits": limits}))
    return path


class Offline(Contender):
    """Renderer, planner and model in one thread, without a service."""

    def __init__(self, model: Path) -> None:
        super().__init__(model)
        served = loader.load(settings.read(configuration(model, 0)))
        assert served.invariant == {"s": True}, "a score that depends on the batch is not worth timing"
        self.signal = served.signals["s"]
        self.computed_tokens = 0

    def score(self, groups: list[Group]) -> list[float]:
        """All items in batches as the service's planner makes them."""
        items = [Item.of(group.prompt, completion) for group in groups for completion in group.completions]
        sequences = [self.signal.renderer.render(item).sequence for item in items]
        left, logits = list(range(len(sequences))), [0.0] * len(sequences)
        self.computed_tokens = 0
        with torch.inference_mode():
            while left:
                queue = [sequences[i] for i in left]
                waiting = [
                    Waiting("s", bytes(str(s.prompt), "ascii"), s.boundary, len(s.ids) - s.boundary, 0.0) for s in queue
                ]
                chosen = [left[i] for i in next_batch(waiting, BATCH_TOKENS)]
                batch = [sequences[i] for i in chosen]
                self.computed_tokens += sum({s.prompt: s.boundary for s in batch}.values())
                self.computed_tokens += sum(len(s.ids) - s.boundary for s in batch)
                for i, logit in zip(chosen, self.signal.model.logits(batch, "s").tolist(), strict=True):
                    logits[i] = logit
                left = [i for i in left if i not in set(chosen)]
        return logits


class Http(Contender):
    """`assay serve` in a process of its own, asked by `RewardClient`."""

    served = True

    def __init__(self, model: Path, cache_bytes: int = 0) -> None:
        super().__init__(model)
        port = free_port()
        command = [str(Path(sys.executable).with_name("assay")), "serve", "--port", str(port)]
        self._process = subprocess.Popen([*command, "--config", str(configuration(model, cache_bytes))])
        self._client = RewardClient(f"http://127.0.0.1:{port}", chunk_size=64)
        until_s = time.monotonic() + START_S
        while not self._client.ready():
            assert self._process.poll() is None, "the service ended"
            assert time.monotonic() < until_s
            time.sleep(0.2)

    def score(self, groups: list[Group]) -> list[float]:
        """One request per 64 items."""
        items = [(group.prompt, completion) for group in groups for completion in group.completions]
        return list(self._client.score(items).scores())

    def close(self) -> None:
        """Ends the service."""
        self._client.close()
        self._process.terminate()
        self._process.wait()


class Remembered(Http):
    """The same service with its cache, asked what it has already answered."""

    def __init__(self, model: Path) -> None:
        super().__init__(model, cache_bytes=64 * 2**20)

    def prepare(self, groups: list[Group]) -> None:
        """Everything is asked once before the clock starts."""
        self.score(groups)
