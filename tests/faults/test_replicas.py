"""Two real processes and our client: a replica is killed, stopped, or behind a network that breaks connections.

Every score is compared, bit for bit, with the one that the same item had before the fault.
"""

import asyncio
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.errors import AssayError
from tests.faults.proxy import FAULTS, run_proxy
from tests.faults.service import SLOW, Service, make_config, serve, until

pytestmark = pytest.mark.slow

WORDS = "mix flour water salt and yeast, and wait for the lazy dog. "
# Several items of each prompt, and prompts enough that both replicas are the home of some.
ITEMS = [(f"How do I bake bread number {n // 3}?", f"{n} times " + WORDS * (1 + n % 4)) for n in range(120)]
# Uncached, so that every answer is computed.
LIMITS = {"cache_bytes": 0}
PATIENT: dict[str, Any] = {"chunk_size": 4, "max_retries": 40, "deadline_s": 240.0}


@dataclass
class Pair:
    """Two replicas of one model, and the scores of `ITEMS`."""

    first: Service
    second: Service
    expected: list[float]

    @property
    def urls(self) -> list[str]:
        return [self.first.url, self.second.url]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    config = make_config(tmp_path_factory.mktemp("replicas"), LIMITS, **SLOW)
    with serve([config, config]) as (first, second):
        with RewardClient(first.url, deadline_s=240) as client:
            expected = client.score(ITEMS).scores()
        assert len(set(expected)) == len(ITEMS)
        yield Pair(first, second, expected)
        # Whatever was done to them, neither replica has met an error that it does not expect.
        assert (first.find_crashes(), second.find_crashes()) == ([], [])


def wait_until_busy(service: Service) -> None:
    until(lambda: service.read_metric("assay_queue_items") > 0)


def test_a_killed_replica_loses_nothing_and_is_asked_again_when_it_is_back(pair: Pair) -> None:
    with RewardClient(pair.urls, timeout_s=60, **PATIENT) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.score, ITEMS)
        wait_until_busy(pair.second)
        pair.second.kill()
        assert not running.done()
        assert running.result().scores() == pair.expected
        pair.second.restart()
        pair.second.wait_until_ready()

        def is_asked_again() -> bool:
            assert client.score(ITEMS[:30]).scores() == pair.expected[:30]
            return pair.second.read_metric("assay_lookups_total") > 10

        until(is_asked_again)


def test_without_a_second_replica_a_kill_is_an_error_and_no_number(pair: Pair) -> None:
    with RewardClient(pair.second.url, chunk_size=4, max_retries=0) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.score, ITEMS)
        wait_until_busy(pair.second)
        pair.second.kill()
        with pytest.raises(AssayError):
            running.result(30)
    pair.second.restart()
    pair.second.wait_until_ready()


def test_a_stopped_replica_costs_one_time_limit_and_loses_nothing(pair: Pair) -> None:
    """SIGSTOP: the kernel still accepts connections for the process, and nothing answers."""
    with RewardClient(pair.urls, timeout_s=10, **PATIENT) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.score, ITEMS)
        wait_until_busy(pair.second)
        pair.second.process.send_signal(signal.SIGSTOP)
        assert not running.done()
        assert running.result().scores() == pair.expected
    with RewardClient(pair.second.url, timeout_s=1, deadline_s=3) as alone:
        began_s = time.monotonic()
        assert not alone.ready()
        with pytest.raises(AssayError):
            alone.score(ITEMS[:1])
        assert time.monotonic() - began_s < 10
    pair.second.process.send_signal(signal.SIGCONT)
    # What its gone clients had asked for leaves the queue, and the next ones get their answers.
    until(lambda: pair.second.read_metric("assay_queue_items") == 0)
    with RewardClient(pair.second.url, **PATIENT) as client:
        assert client.ready()
        assert client.score(ITEMS).scores() == pair.expected


# Half of the connections are left alone, so that a request gets through after a few tries.
DRAWN = ["none"] * len(FAULTS) + list(FAULTS)


@pytest.mark.parametrize("seed", [1, 2])
def test_broken_connections_lose_nothing(pair: Pair, seed: int) -> None:
    with (
        run_proxy(pair.first.port, DRAWN, seed) as one,
        run_proxy(pair.second.port, DRAWN, seed + 100) as two,
        RewardClient([one.url, two.url], timeout_s=10, **PATIENT) as client,
    ):
        assert client.score(ITEMS).scores() == pair.expected
        broken = sum(count for fault, count in (one.met + two.met).items() if fault not in ("none", "delay"))
        assert broken >= 4


def test_broken_connections_lose_nothing_in_an_event_loop(pair: Pair) -> None:
    async def score(url: str) -> list[float]:
        async with AsyncRewardClient(url, timeout_s=10, **PATIENT) as client:
            return (await client.score(ITEMS)).scores()

    with run_proxy(pair.first.port, DRAWN, 3) as proxy:
        assert asyncio.run(score(proxy.url)) == pair.expected


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("none", "delay")])
def test_a_connection_that_is_broken_each_time_is_an_error_and_no_number(pair: Pair, fault: str) -> None:
    with (
        run_proxy(pair.first.port, [fault]) as proxy,
        RewardClient(proxy.url, timeout_s=1, deadline_s=3, max_retries=1) as client,
        pytest.raises(AssayError),
    ):
        client.score(ITEMS[:1])
    assert proxy.met[fault] >= 1
