"""Clients that cross a border: a fork, a spawned process, a pickle, threads, another event loop."""

import asyncio
import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dill
import pytest

from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.errors import InvalidAnswer, ServerError

if TYPE_CHECKING:
    from tests.client.conftest import Either, Loopback, ReceivedRequest, Reply, Script, Wire

    Start = Callable[[Script], Loopback]


@pytest.fixture
def server(loopback: "Start", wire: "type[Wire]", reply: "type[Reply]") -> "Loopback":
    """Answers after 20 ms, so that requests of several processes are on their way at the same time."""

    def script(asked: "ReceivedRequest", number: int) -> "Reply":
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
    server: "Loopback", tmp_path: Path, method: str, kind: str
) -> None:
    assert run_script(tmp_path, WORKERS, method, kind, server.url) == [
        [[0, 0]] * 5,
        [0] * 4,
    ]  # no answer wrong, no call failed, every worker ended well


def run_script(tmp_path: Path, text: str, *words: str) -> Any:
    """What a script of its own prints as JSON; a script, because pytest's process has threads and may not fork."""
    script = tmp_path / "script.py"
    script.write_text(text)
    done = subprocess.run([sys.executable, script, *words], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


CLOSING = """
import json, os, sys
from assay_client.client import RewardClient

client = RewardClient(sys.argv[1])
before = client.score([("p", "1")]).scores()
child = os.fork()
if not child:
    with client:
        right = client.score([("p", "2")]).scores() == [2.0]
    os._exit(0 if right else 1)
ended = os.waitpid(child, 0)[1]
print(json.dumps([before, ended, client.score([("p", "3")]).scores()]))
"""


def test_a_child_that_closes_its_client_leaves_the_parents_connection_alone(
    loopback: "Start", wire: "type[Wire]", reply: "type[Reply]", tmp_path: Path
) -> None:
    server = loopback(lambda asked, number: reply(wire.honest(asked.path, asked.body)))
    assert run_script(tmp_path, CLOSING, server.url) == [[1.0], 0, [3.0]]
    first, child, last = [asked.port for asked in server.asked]
    assert first == last != child


BUSY = """
import os, sys, threading, time
from assay_client.client import RewardClient

client = RewardClient(sys.argv[1], max_concurrency=1)
client.score([("p", "0")])  # so that the thread below imports nothing at the time of the fork
busy = threading.Thread(target=client.score, args=([("p", "1")],), kwargs={"model": "slow"})
busy.start()
time.sleep(0.3)
child = os.fork()
if not child:
    os._exit(0 if client.score([("p", "2")]).scores() == [2.0] else 1)
print(os.waitpid(child, 0)[1])
busy.join()
"""


def test_a_child_does_not_wait_for_requests_of_its_parent(
    loopback: "Start", wire: "type[Wire]", reply: "type[Reply]", tmp_path: Path
) -> None:
    """The parent holds its only slot when it forks; a lock would stay locked in the child for ever."""

    def script(asked: "ReceivedRequest", number: int) -> "Reply":
        return reply(wire.honest(asked.path, asked.body), delay_s=1.0 if asked.body.get("model") == "slow" else 0.0)

    server = loopback(script)
    assert run_script(tmp_path, BUSY, server.url) == 0


TRANSPORTS = """
import json, os, sys
import httpx
from assay_client.client import RewardClient
from assay_client.in_process import AppTransport

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})

transport = AppTransport(app)
client, plain = RewardClient("http://app", transport=transport), httpx.Client(transport=transport)
out, into = os.pipe()
if not os.fork():
    told = []
    for ask in (client.info, lambda: plain.get("http://app/")):
        try:
            ask()
        except Exception as error:
            told.append([type(error).__name__, str(error)])
    client.close()
    transport.close()
    os.write(into, json.dumps(told).encode())
    os._exit(0)
os.wait()
print(json.dumps([json.loads(os.read(out, 10000)), plain.get("http://app/").text]))
transport.close()
"""


def test_an_application_in_the_parent_is_not_asked_by_a_child(tmp_path: Path) -> None:
    """It would wait for ever for a thread that the child does not have."""
    reported, parents = run_script(tmp_path, TRANSPORTS)
    assert reported == [
        [
            "TransportError",
            "this client was given a `transport` in another process, where it stays; make a client in this process",
        ],
        ["RuntimeError", "the application runs in another process; start one, and its client, in this process"],
    ]
    assert parents == "{}"


COPIES = {"pickle": lambda one: pickle.loads(pickle.dumps(one)), "dill": lambda one: dill.loads(dill.dumps(one))}
COPIES |= {"copy": copy.copy, "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", [RewardClient, AsyncRewardClient])
def test_a_copy_has_the_settings_and_connections_of_its_own(server: "Loopback", how: str, kind: Any) -> None:
    settings = {
        "api_key": "k-1",
        "ca_file": None,
        "timeout_s": 7.0,
        "deadline_s": 8.0,
        "max_retries": 1,
        "chunk_size": 2,
        "max_concurrency": 3,
    }
    client = kind(server.url, headers={"X-Team": "red"}, **settings)
    again = COPIES[how](client)

    async def ask(one: Any) -> Any:
        items = [("p", "1"), ("p", "2"), ("p", "3")]
        if kind is AsyncRewardClient:
            async with one:
                return (await one.score(items)).scores()
        with one:
            return one.score(items).scores()

    assert asyncio.run(ask(client)) == asyncio.run(ask(again)) == [1.0, 2.0, 3.0]
    assert type(again) is kind
    assert [asked.team for asked in server.asked] == ["red"] * 4  # two chunks each
    assert not {asked.port for asked in server.asked[:2]} & {asked.port for asked in server.asked[2:]}
    assert (again.chunk_size, again.max_concurrency, again.base_url) == (2, 3, server.url)
    assert again._policy == client._policy
    assert client.__reduce__()[0].keywords == {**settings, "headers": {"X-Team": "red"}}


def test_a_function_that_holds_a_client_can_be_sent_elsewhere(server: "Loopback") -> None:
    """As Ray and `datasets` send functions: by value, with what they hold."""
    with RewardClient(server.url) as client:
        client.score([("p", "1")])

        def score(text: str) -> list[float]:
            with client:
                return client.score([("p", text)]).scores()

        assert dill.loads(dill.dumps(score))("2") == [2.0]
        assert score("3") == [3.0]  # the copy's end was not this one's


@pytest.mark.parametrize("given", ["transport", "clock"])
@pytest.mark.parametrize("dumps", [pickle.dumps, dill.dumps, copy.copy])
def test_a_transport_or_a_clock_cannot_be_sent(honest: Any, clock: Any, given: str, dumps: Any) -> None:
    client = RewardClient("http://assay.test", **{given: {"transport": honest, "clock": clock}[given]})
    with pytest.raises(TypeError, match="`transport` or `clock` cannot be pickled; make one where it is used"):
        dumps(client)


def test_threads_of_one_client_get_their_own_scores(server: "Loopback") -> None:
    with RewardClient(server.url, chunk_size=2) as client, ThreadPoolExecutor(8) as pool:
        asked = [[float(100 * n + k) for k in range(5)] for n in range(24)]
        scored = pool.map(lambda values: client.score([("p", str(value)) for value in values]).scores(), asked)
        assert list(scored) == asked


def test_one_client_works_in_loops_one_after_another_and_leaves_nothing_open(server: "Loopback") -> None:
    client = AsyncRewardClient(server.url)

    async def score(text: str) -> list[float]:
        first = (await client.score([("p", text)])).scores()
        return first + (await client.score([("p", text)])).scores()

    assert [asyncio.run(score(str(n))) for n in range(3)] == [[float(n)] * 2 for n in range(3)]
    ports = [asked.port for asked in server.asked]
    assert ports[::2] == ports[1::2]  # within a loop the connection is used again
    assert len(set(ports)) == 3
    assert server.wait_until_open(0)


def test_one_client_works_in_loops_at_the_same_time(server: "Loopback") -> None:
    client = AsyncRewardClient(server.url)

    def work(number: int) -> list[float]:
        async def score() -> list[float]:
            results = await asyncio.gather(*(client.score([("p", str(10 * number + k))]) for k in range(10)))
            return [one for result in results for one in result.scores()]

        return asyncio.run(score())

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [[float(10 * n + k) for k in range(10)] for n in range(4)]


def test_a_client_outlives_a_loop_that_was_closed_by_hand(server: "Loopback") -> None:
    client = AsyncRewardClient(server.url)
    for number in range(2):
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(client.score([("p", str(number))])).scores() == [float(number)]
        loop.run_until_complete(client.close())
        loop.close()


def test_a_client_that_is_closed_stays_closed(server: "Loopback") -> None:
    async def asynchronously() -> None:
        client = AsyncRewardClient(server.url)
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await client.info()

    client = RewardClient(server.url)
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.info()
    asyncio.run(asynchronously())


# --- Every answer is to its request


@pytest.mark.parametrize(
    ("status", "got", "says"),
    [
        (200, "another", "it is to X-Request-ID 'another'"),
        (422, "another", "it is to X-Request-ID 'another'"),
        (503, "another", "it is to X-Request-ID 'another'"),
        (200, None, "it has no X-Request-ID"),
    ],
)
def test_an_answer_to_another_request_is_refused_and_its_connection_given_up(
    either: "Either",
    loopback: "Start",
    wire: "type[Wire]",
    reply: "type[Reply]",
    status: int,
    got: str | None,
    says: str,
) -> None:
    """A connection that is one answer behind would be wrong for ever."""

    def script(asked: "ReceivedRequest", number: int) -> "Reply":
        headers = {"X-Request-ID": got} if number == 0 else {}
        return reply(wire.honest(asked.path, asked.body), 200 if number else status, headers)

    server = loopback(script)

    async def asynchronously() -> tuple[InvalidAnswer, list[float]]:
        async with AsyncRewardClient(server.url) as client:
            with pytest.raises(InvalidAnswer) as raised:
                await client.score([("p", "1")])
            return raised.value, (await client.score([("p", "2")])).scores()

    if either.kind == "async":
        error, scores = asyncio.run(asynchronously())
    else:
        with RewardClient(server.url) as client:
            with pytest.raises(InvalidAnswer) as raised:
                client.score([("p", "1")])
            error, scores = raised.value, client.score([("p", "2")]).scores()
    assert says in str(error)
    assert error.request_id == server.asked[0].request_id
    assert scores == [2.0]
    assert len(server.asked) == 2
    assert server.asked[0].port != server.asked[1].port


def test_an_error_page_of_a_proxy_needs_no_id(either: "Either", loopback: "Start", reply: "type[Reply]") -> None:
    server = loopback(lambda asked, number: reply(b"<html>", 502, {"X-Request-ID": None}))
    with pytest.raises(ServerError, match="502 http_502: <html>"):
        either.score([("p", "1")], url=server.url, max_retries=0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_error_that_names_the_other_address(
    either: "Either", loopback: "Start", reply: "type[Reply]", status: int
) -> None:
    """It is not followed: another host would get the key, and a POST could become a GET."""
    server = loopback(lambda asked, number: reply(b"", status, {"Location": "https://new.test/v1/score?key=Secret-7"}))
    with pytest.raises(ServerError) as raised:
        either.score([("p", "1")], url=server.url, api_key="Secret-7")
    assert "the address redirects to https://new.test/v1/score?key=[API key]; give the address of" in str(raised.value)
    assert "Secret-7" not in str(raised.value)
    assert len(server.asked) == 1
