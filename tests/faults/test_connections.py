"""Clients that are slow, half open, or leave all at once; others are served meanwhile."""

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from assay_client.client import RewardClient
from assay_service import patience
from tests.faults.service import SLOW, Service, make_config, serve, until

WORDS = "mix flour water salt and yeast, and wait for the lazy dog. "
CLIENTS = 150
HEAD = "POST /v1/score HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def build_request(number: int) -> bytes:
    items = [{"prompt": f"gone {number}", "completion": f"{place} {WORDS * 4}"} for place in range(4)]
    body = json.dumps({"items": items}).encode()
    return HEAD.format(len(body)).encode() + body


def count(service: Service, what: str) -> int:
    """Number of the threads (`task`) or open files (`fd`) of a process."""
    return len(list(Path(f"/proc/{service.process.pid}/{what}").iterdir()))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    # The storm has to be let in, so that it can leave.
    limits = {"cache_bytes": 0, "max_queue_wait_s": 600}
    with serve([make_config(tmp_path_factory.mktemp("connections"), limits, **SLOW)]) as (one,):
        yield one
        assert one.find_crashes() == []


@pytest.mark.slow
def test_a_storm_of_disconnects_takes_its_work_with_it(service: Service) -> None:
    """600 sequences wait, most of a minute of work; their clients leave at once, half of them by a reset."""
    item = ("How do I bake bread?", "wait")
    with RewardClient(service.url) as client:
        expected = client.score([item]).scores()
        files = count(service, "fd")
        sockets = [connect(service.port) for _ in range(CLIENTS)]
        for number, one in enumerate(sockets):
            one.sendall(build_request(number))
        until(lambda: service.read_metric("assay_queue_items") > CLIENTS)
        computed = service.read_metric("assay_batch_tokens_sum")
        waiting = service.read_metric("assay_queue_tokens")
        for number, one in enumerate(sockets):
            if number % 2:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
        until(lambda: service.read_metric("assay_queue_items") == 0)
        # Not because it was computed: most of it never was.
        assert service.read_metric("assay_batch_tokens_sum") - computed < waiting / 2
        assert client.score([item]).scores() == expected
    until(lambda: count(service, "fd") <= files + 2)


@pytest.mark.slow
def test_half_open_connections_hold_no_thread_and_delay_nobody(service: Service) -> None:
    items = [("How do I bake bread?", f"{n} {WORDS}") for n in range(8)]
    with RewardClient(service.url) as client, ExitStack() as stack:
        expected, threads = client.score(items).scores(), count(service, "task")
        sockets = [stack.enter_context(connect(service.port)) for _ in range(3 * CLIENTS)]
        for number, one in enumerate(sockets):
            # Silent, with a part of the head, or with a part of the body.
            one.sendall((b"", b"POST /v1/score HTTP/1.1\r\nhost:", build_request(number)[:400])[number % 3])
        for byte in range(20):  # a byte now and then, as slow clients send it
            with RewardClient(service.url, timeout_s=30, max_retries=0) as other:
                assert other.score(items).scores() == expected
            for one in sockets[2::3]:
                one.sendall(build_request(0)[400 + byte : 401 + byte])
        assert count(service, "task") <= threads + 8
        assert client.ready()


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads the body, and takes longer to answer than a request may take to arrive."""
    if scope["type"] != "http":
        return
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.disconnect":
        return
    await asyncio.sleep(0.6)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def run_patient(receive_s: float, patch: pytest.MonkeyPatch) -> Iterator[int]:
    patch.setattr(patience, "RECEIVE_S", receive_s)
    config = uvicorn.Config(answer, port=0, log_config=None, http=patience.PatientProtocol, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(30)


def is_closed(one: socket.socket) -> bool:
    with suppress(ConnectionError):
        return one.recv(1) == b""
    return True


def test_a_request_that_does_not_arrive_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_patient(0.3, monkeypatch) as port, ExitStack() as stack:
        silent, head, body = (stack.enter_context(connect(port)) for _ in range(3))
        head.sendall(b"POST / HTTP/1.1\r\nhost:")
        body.sendall(HEAD.format(1000).encode())
        began_s = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() < began_s + 5:  # bytes that keep coming do not help
                head.sendall(b"x")
                body.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - began_s < 5
        assert all(map(is_closed, (silent, head, body)))


def test_an_answer_may_take_longer_and_a_connection_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_patient(0.3, monkeypatch) as port, connect(port) as one:
        for _ in range(2):
            one.sendall(HEAD.format(2).encode() + b"{}")
            got = b""
            while not got.endswith(b"ok"):
                got += (part := one.recv(1000))
                assert part
            time.sleep(0.5)  # idle, for longer than a request may take to arrive
        # The clock runs again for a request that has begun.
        one.sendall(b"POST / HTTP/1.1\r\nhost:")
        assert is_closed(one)


def test_a_request_that_follows_at_once_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_patient(0.3, monkeypatch) as port, connect(port) as one:
        one.sendall(HEAD.format(2).encode() + b"{}" + b"POST / HTTP/1.1\r\nhost:")
        began_s, got = time.monotonic(), b""
        while part := one.recv(1000):
            got += part
        assert got.endswith(b"ok")
        # By uvicorn's own limit of 5 s for idle connections, or by ours.
        assert time.monotonic() - began_s < 20
