"""How many requests of one client are in flight, and what is left open at the end."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.errors import DeadlineExceeded, Timeout

if TYPE_CHECKING:
    from tests.client.conftest import Loopback, ReceivedRequest, Reply, Script, Wire

    Start = Callable[[Script], Loopback]


@pytest.fixture
def server(loopback: "Start", wire: "type[Wire]", reply: "type[Reply]") -> "Loopback":
    """Answers to score after 10 ms, or for the model "slow" after a second; `/info` at once."""

    def script(asked: "ReceivedRequest", number: int) -> "Reply":
        delay_s = {"slow": 1.0}.get(asked.body.get("model", ""), 0.01) if asked.path == "/v1/score" else 0.0
        return reply(wire.honest(asked.path, asked.body), delay_s=delay_s)

    return loopback(script)


def test_hundreds_of_tasks_share_a_few_connections(server: "Loopback") -> None:
    async def run() -> list[float]:
        async with AsyncRewardClient(server.url, max_concurrency=4) as client:
            results = await asyncio.gather(*(client.score([("p", str(n))]) for n in range(300)))
            return [score for result in results for score in result.scores()]

    assert asyncio.run(run()) == [float(n) for n in range(300)]
    assert server.most_open == 4
    assert len({asked.port for asked in server.asked}) == 4  # they are used again


def test_threads_share_a_few_connections(server: "Loopback") -> None:
    with RewardClient(server.url, max_concurrency=3, chunk_size=2) as client, ThreadPoolExecutor(40) as pool:
        scores = pool.map(lambda n: client.score([("p", str(n))] * 5).scores(), range(80))
        assert list(scores) == [[float(n)] * 5 for n in range(80)]
    assert server.most_open == 3


def test_endpoints_share_the_limit(server: "Loopback", loopback: "Start", wire: "type[Wire]", reply: Any) -> None:
    other = loopback(lambda asked, number: reply(wire.honest(asked.path, asked.body), delay_s=0.01))

    async def run() -> None:
        async with AsyncRewardClient([server.url, other.url], max_concurrency=4) as client:
            await asyncio.gather(*(client.score([(f"p{n}", "1")]) for n in range(100)))

    asyncio.run(run())
    # Not connections: the client replaces idle ones, and a server may notice the new one before the end of the old one.
    assert max(server.most_busy, other.most_busy) <= 4
    assert min(len(server.asked), len(other.asked)) > 20


def test_a_description_is_not_kept_waiting_by_scoring(server: "Loopback") -> None:
    """`assay score` takes it for a sign of life."""

    async def run() -> float:
        async with AsyncRewardClient(server.url, max_concurrency=1) as client:
            scoring = asyncio.create_task(client.score([("p", "1")], model="slow"))
            await asyncio.sleep(0.1)
            begun = time.monotonic()
            assert await client.info() == {"version": "1"}
            took_s = time.monotonic() - begun
            assert not scoring.done()
            await scoring
            return took_s

    assert asyncio.run(run()) < 0.8


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_waiting_in_line_counts_towards_the_deadline_but_not_towards_a_try(server: "Loopback", kind: str) -> None:
    options: dict[str, Any] = {"max_concurrency": 1, "max_retries": 0}

    def ask(client: Any) -> Any:
        return client.score([("p", "1")], model="slow")

    async def asynchronously(times: dict[str, Any]) -> list[Any]:
        async with AsyncRewardClient(server.url, **options, **times) as client:
            return await asyncio.gather(*(ask(client) for _ in range(3)), return_exceptions=True)

    def synchronously(times: dict[str, Any]) -> list[Any]:
        outcomes: list[Any] = []

        def work(client: RewardClient) -> None:
            try:
                outcomes.append(ask(client))
            except (DeadlineExceeded, Timeout) as error:
                outcomes.append(error)

        with RewardClient(server.url, **options, **times) as client:
            threads = [threading.Thread(target=work, args=(client,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return outcomes

    def run(**times: Any) -> list[Any]:
        return asyncio.run(asynchronously(times)) if kind == "async" else synchronously(times)

    assert [outcome.scores() for outcome in run(timeout_s=1.9)] == [[1.0]] * 3
    kinds = sorted(type(outcome).__name__ for outcome in run(deadline_s=1.7))
    assert kinds == ["DeadlineExceeded", "DeadlineExceeded", "ScoreResult"]


def test_a_task_that_is_cancelled_in_line_gives_up_its_place(server: "Loopback") -> None:
    async def run() -> list[float]:
        async with AsyncRewardClient(server.url, max_concurrency=1) as client:
            first = asyncio.create_task(client.score([("p", "1")], model="slow"))
            waiting = [asyncio.create_task(client.score([("p", str(n))])) for n in range(2, 6)]
            await asyncio.sleep(0.05)
            for task in waiting[:3]:
                task.cancel()
            await asyncio.gather(*waiting[:3], return_exceptions=True)
            return [*(await first).scores(), *(await waiting[3]).scores()]

    assert asyncio.run(asyncio.wait_for(run(), 10)) == [1.0, 5.0]
    assert [asked.body["items"][0]["completion"] for asked in server.asked] == ["1", "5"]


# A process of its own, whose every warning is an error, also those from destructors and at the end.
LEAKS = """
import asyncio, gc, json, sys, threading
from assay_client import AsyncRewardClient, RewardClient

leaks = []
sys.unraisablehook = lambda found: leaks.append(str(found.exc_value))
urls = sys.argv[1:]

def loops():                      # ms-swift: one client, one `asyncio.run` for each call
    client = AsyncRewardClient(urls)
    async def score(n):
        return (await client.score([(f"p{n}", "1"), (f"q{n}", "2")])).scores()
    for n in range(5):
        assert asyncio.run(score(n)) == [1.0, 2.0]

def failing():                    # the call is cancelled while requests are on their way
    client = AsyncRewardClient(urls)
    async def score():
        try:
            await asyncio.wait_for(client.score([("p", "1")] * 3, model="slow"), 0.1)
        except TimeoutError:
            pass
    asyncio.run(score())

def threads():                    # one client that nobody closes
    client = RewardClient(urls, chunk_size=1)
    work = [threading.Thread(target=lambda: client.score([("p", "1"), ("q", "2")])) for _ in range(8)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()

def closed():
    with RewardClient(urls) as client:
        client.score([("p", "1")])

for use in (loops, failing, threads, closed):
    use()
    gc.collect()
    if leaks:
        print(json.dumps([use.__name__, leaks]))
        sys.exit(1)
kept = RewardClient(urls)         # until the process ends
kept.score([("p", "1")])
print("[]")
"""


def test_no_socket_is_left_open(server: "Loopback", loopback: "Start", wire: Any, reply: Any, tmp_path: Path) -> None:
    other = loopback(lambda asked, number: reply(wire.honest(asked.path, asked.body)))
    script = tmp_path / "leaks.py"
    script.write_text(LEAKS)
    words = [sys.executable, "-W", "error::ResourceWarning", str(script), server.url, other.url]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)
    assert (json.loads(done.stdout or "null"), done.stderr, done.returncode) == ([], "", 0)
    assert server.wait_until_open(0)
    assert other.wait_until_open(0)
