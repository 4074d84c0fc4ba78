"""The wall clock jumps while requests run: only `created` may follow it."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from assay_client.client import RewardClient
from tests.faults.service import SLOW, Service, make_config, serve, until
from tests.real_tokenizers import unavailable

pytestmark = pytest.mark.slow

# Debian and Ubuntu: the package libfaketime.
PLACES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
ITEMS = [(f"How do I bake bread number {n}?", f"{n} minutes " + "and wait " * 60) for n in range(64)]
JUMPS = ("-30d", "+3650d", "-1h", "+0")


@dataclass
class Jumping:
    """A service whose wall clock is set by a file; its monotonic clock is the real one."""

    service: Service
    file: Path

    def jump(self, offset: str) -> None:
        self.file.write_text(f"{offset}\n")

    def read_clock_s(self) -> int:
        answer = httpx.post(f"{self.service.url}/v1/score", json={"items": []}, timeout=60)
        return int(answer.json()["created"])


@pytest.fixture(scope="module")
def jumping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jumping]:
    if not PLACES:
        unavailable("no libfaketime is installed")
    root = tmp_path_factory.mktemp("clock")
    env = {
        "LD_PRELOAD": str(PLACES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(root / "clock"),
        # The file is read once in a second, and times of files stay real: else every import would read it many times.
        "FAKETIME_CACHE_DURATION": "1",
        "NO_FAKE_STAT": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    (root / "clock").write_text("+0\n")
    limits = {"cache_bytes": 0, "max_queue_wait_s": 600}  # so that every refusal would be one of the clock
    with serve([make_config(root, limits, **SLOW)], env=env) as (service,):
        yield Jumping(service, root / "clock")
        assert service.find_crashes() == []


def test_no_deadline_and_no_score_follows_the_wall_clock(jumping: Jumping) -> None:
    with (
        RewardClient(jumping.service.url, chunk_size=8, timeout_s=120, max_retries=0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        expected = client.score(ITEMS).scores()
        for offset, days in zip(JUMPS, (-30, 3650, 0, 0), strict=True):
            running = pool.submit(client.score, ITEMS)
            jumping.jump(offset)
            until(lambda days=days: abs(jumping.read_clock_s() - time.time() - days * 86_400) < 7200)
            assert running.result(300).scores() == expected
            assert client.ready()
        refused = jumping.service.read_metric("assay_rejected_requests_total")
        assert refused == 0
        # Waits that are measured in the queue stay as short as they are.
        waited = jumping.service.read_metric("assay_queue_seconds_sum")
        assert 0 <= waited < 5 * len(ITEMS) * 300
