"""Clients that cross a border: a fork, a spawned process, a pickle, threads, another event loop."""

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import dill
import httpx
import pytest

from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.errors import InvalidAnswer, ServerError, TransportError
from assay_client.in_process import AppTransport

if TYPE_CHECKING:
    from tests.client.conftest import Asked, Loopback, Reply, Script, Wire

    Start = Callable[[Script], Loopback]


@pytest.fixture
def server(loopback: "Start", wire: "type[Wire]", reply: "type[Reply]") -> "Loopback":
    """Answers after 20 ms, so that requests of several processes are on their way at the same time."""

    def script(asked: "Asked", number: int) -> "Reply":
        return reply(wire.honest(asked.path, asked.body), delay_s=0.02)

    return loopback(script)


# A script of its own: the parent has one client, has used it, and has no other threads when it forks.
WORKERS = """
import asyncio, json, multiprocessing, sys
from assay_client.client import AsyncRewardClient, RewardClient

method, kind, url = sys.argv[1:]

def score(client, items):
    if isinstance(client, RewardClient):
        return client.score(items).scores()
    async def scored():
        return (await client.score(items)).scores()
    return asyncio.run(scored())

def counted(number, client):
    wrong, failed = 0, 0
    for turn in range(15):
        values = [float(1000 * number + turn), float(number)]
        try:
            wrong += score(client, [("p", str(value)) for value in values]) != values
        except Exception:
            failed += 1
    return wrong, failed

def work(number, client, pipe):
    pipe.send(counted(number, client))

if __name__ == "__main__":
    client = {"sync": RewardClient, "async": AsyncRewardClient}[kind](url)
    assert score(client, [("p", "7")]) == [7.0]
    context = multiprocessing.get_context(method)
    pipes, workers = [], []
    for number in range(1, 5):
        ours, theirs = context.Pipe()
        pipes.append(ours)
        workers.append(context.Process(target=work, args=(number, client, theirs)))
        workers[-1].start()
    told = [counted(0, client), *(pipe.recv() for pipe in pipes if pipe.poll(60))]
    for worker in workers:
        worker.join(60)
    print(json.dumps([told, [worker.exitcode for worker in workers]]))
"""


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_and_their_parent_each_get_their_own_scores(
    server: "Loopback", tmp_path: Any, method: str, kind: str
) -> None:
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, script, method, kind, server.url], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        [[0, 0]] * 5,
        [0] * 4,
    ]  # no answer wrong, no call failed, every worker ended well
