"""More work than can be done: a real service over real sockets, whose model waits for the test."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import anyio.to_thread
import httpx
import pytest

from assay_client.client import RewardClient
from assay_client.errors import Expired, TooManyTokens
from assay_service.api.app import create_app
from assay_service.engine.rate import DrainRate
from tests.compat.conftest import Served, run_app

WAIT_S = 30
LIMITS = {"max_queue_items": 8, "max_completions": 6, "max_messages": 5, "max_request_tokens": 2000, "cache_bytes": 0}
ITEM = {"prompt": "bake?", "completion": "bread"}


class Gate:
    """A gate in front of every forward pass, and a count of the sequences behind it.

    Attributes:
        pace_s: seconds that each token takes in addition.
    """

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.arrived = threading.Event()
        self.pace_s = 0.0
        self.sequences = 0

    def open(self) -> None:
        self.pace_s, self.sequences = 0.0, 0
        self.arrived.clear()
        self.opened.set()

    def close(self) -> None:
        self.opened.clear()
        self.arrived.clear()

    def wrap(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def wait_and_read(sequences: Sequence[Any], names: Sequence[str]) -> Any:
            self.arrived.set()
            assert self.opened.wait(WAIT_S)
            self.sequences += len(sequences)
            time.sleep(self.pace_s * sum(len(sequence.ids) for sequence in sequences))
            return read(sequences, names)

        return wait_and_read


@pytest.fixture(scope="module")
def gated(tiny: dict[str, Any]) -> Iterator[tuple[Served, Gate]]:
    settings = tiny["settings"]
    settings = settings.model_copy(update={"limits": settings.limits.model_copy(update=LIMITS)})
    app, gate = create_app(settings), Gate()
    gate.open()
    for model in {signal.model for signal in app.state.scorer.registry.signals.values()}:
        model.read = gate.wrap(model.read)
    with run_app(app) as served:
        yield served, gate


@pytest.fixture
def service(gated: tuple[Served, Gate]) -> Iterator[tuple[str, Gate]]:
    """The service with an open gate, all of whose signals have scored just now."""
    served, gate = gated
    gate.open()
    # As after a start: closed gates and paces of other tests are not the speed of the model.
    served.app.state.scorer.engine._backlog.rate = DrainRate()
    for signal in ("pref", "abs", "enc"):
        assert post(served.url, 1, model=signal).status_code == 200
    gate.sequences = 0
    yield served.url, gate
    gate.open()
    until(lambda: read_metric(served.url, "assay_queue_items") == 0)


def post(url: str, count: int, timeout_ms: int | None = None, **fields: Any) -> httpx.Response:
    headers = {} if timeout_ms is None else {"X-Request-Timeout-Ms": str(timeout_ms)}
    body = {"items": [ITEM] * count, "model": "pref", **fields}
    return httpx.post(f"{url}/v1/score", json=body, headers=headers, timeout=WAIT_S)


def read_metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=WAIT_S).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def until(true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def hold(url: str, gate: Gate, pool: ThreadPoolExecutor) -> "Future[httpx.Response]":
    """Closes the gate and sends a request that then runs for as long as it stays closed."""
    gate.close()
    running = pool.submit(post, url, 1)
    assert gate.arrived.wait(WAIT_S)
    return running


def test_a_full_queue_refuses_at_once_and_finishes_what_it_took(service: tuple[str, Gate]) -> None:
    url, gate = service
    refused = read_metric(url, 'assay_rejected_requests_total{reason="items"}')
    with ThreadPoolExecutor(4) as pool:
        running = hold(url, gate, pool)
        waiting = [pool.submit(post, url, 4) for _ in range(2)]
        until(lambda: read_metric(url, "assay_queue_items") == 8)
        answer = post(url, 1)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["retryable"]) == (429, "overloaded", True)
        assert "max_queue_items" in error["message"]
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        # Probes are not requests for scores: they answer while nothing moves.
        for path in ("/health", "/ready", "/metrics"):
            assert httpx.get(url + path, timeout=2).status_code == 200
        assert read_metric(url, 'assay_rejected_requests_total{reason="items"}') == refused + 1
        gate.opened.set()
        answers = [future.result() for future in (running, *waiting)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert gate.sequences == 9


@pytest.mark.parametrize("header", ["X-Request-Timeout-Ms", "X-Envoy-Expected-Rq-Timeout-Ms"])
def test_expired_work_is_answered_in_time_and_never_computed(service: tuple[str, Gate], header: str) -> None:
    url, gate = service
    expired = read_metric(url, 'assay_rejected_requests_total{reason="expired"}')
    with ThreadPoolExecutor(2) as pool:
        running = hold(url, gate, pool)
        body = {"items": [ITEM] * 4, "model": "pref"}
        answer = httpx.post(f"{url}/v1/score", json=body, headers={header: "400"}, timeout=WAIT_S)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["retryable"]) == (504, "deadline_exceeded", True)
        assert read_metric(url, "assay_queue_items") == 0
        gate.opened.set()
        assert running.result().status_code == 200
    assert read_metric(url, 'assay_rejected_requests_total{reason="expired"}') == expired + 1
    assert gate.sequences == 1


def test_a_request_that_cannot_be_in_time_is_refused_at_once(service: tuple[str, Gate]) -> None:
    url, gate = service
    gate.pace_s = 0.002  # at most 500 tokens/s
    with ThreadPoolExecutor(4) as pool:
        assert {future.result().status_code for future in [pool.submit(post, url, 2) for _ in range(4)]} == {200}
    assert post(url, 8).status_code == 200
    long = {"items": [{"prompt": "bake?", "completion": "bread " * 60}] * 8}
    began_s = time.monotonic()
    answer = post(url, 8, 500, **long)
    assert time.monotonic() - began_s < 0.5
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["retryable"]) == (504, "deadline_exceeded", False)
    with (
        RewardClient(url, timeout_s=0.5, max_retries=3) as client,
        pytest.raises(Expired, match="send fewer items at once, or wait longer"),
    ):
        client.score([("bake?", "bread " * 60)] * 8, model="pref")
    assert post(url, 1, 20_000).status_code == 200


@pytest.mark.parametrize("value", ["0", "-5", "5s", "1.5", "", "9" * 5000, "٣"])
def test_a_timeout_must_be_a_number(service: tuple[str, Gate], value: str) -> None:
    url, _ = service
    headers = [(b"X-Request-Timeout-Ms", value.encode())]
    answer = httpx.post(f"{url}/v1/score", json={"items": [ITEM]}, headers=headers, timeout=WAIT_S)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "X-Request-Timeout-Ms"


def test_a_zero_of_envoy_means_that_there_is_not_any_limit(service: tuple[str, Gate]) -> None:
    url, _ = service
    headers = {"X-Envoy-Expected-Rq-Timeout-Ms": "0"}
    assert httpx.post(f"{url}/v1/score", json={"items": [ITEM]}, headers=headers, timeout=WAIT_S).status_code == 200


def test_a_client_that_has_gone_takes_its_items_with_it(service: tuple[str, Gate]) -> None:
    url, gate = service
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"items": [ITEM] * 6, "model": "pref"}).encode()
    head = f"POST /v1/score HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    with ThreadPoolExecutor(1) as pool:
        running = hold(url, gate, pool)
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: read_metric(url, "assay_queue_items") == 6)
        # While the model still stands: the room is free at once, and not after the pass that runs.
        until(lambda: read_metric(url, "assay_queue_items") == 0)
        assert read_metric(url, "assay_queue_tokens") == 0
        gate.opened.set()
        assert running.result().status_code == 200
    assert gate.sequences == 1


def test_limits_of_a_request_name_their_keys(service: tuple[str, Gate]) -> None:
    url, _ = service
    answer = httpx.post(f"{url}/v1/rank", json={"prompt": "p", "completions": ["a"] * 7}, timeout=WAIT_S)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_items")
    assert "the limit is 6 (max_completions)" in answer.json()["error"]["message"]
    documents = {"query": "q", "documents": ["a"] * 7}
    answer = httpx.post(f"{url}/compat/jina/v1/rerank", json=documents, timeout=WAIT_S)
    assert (answer.status_code, "max_completions" in answer.json()["detail"]) == (413, True)
    answer = post(url, 0, items=[{"prompt": "p", "completion": "bread " * 60}] * 40)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_tokens")
    assert "(max_request_tokens)" in answer.json()["error"]["message"]
    turns = [{"role": role, "content": "hi"} for _ in range(3) for role in ("user", "assistant")]
    data = post(url, 0, items=[{"messages": turns}, ITEM]).json()["data"]
    assert data[0]["error"]["code"] == "too_long"
    assert "the item has 6 messages; the limit is 5 (max_messages)" in data[0]["error"]["message"]
    assert "score" in data[1]
    with RewardClient(url) as client, pytest.raises(TooManyTokens):
        client.score([("p", "bread " * 60)] * 40)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/score", {"items": [ITEM]}),
        ("/compat/cohere/v2/rerank", {"model": "pref", "query": "bake?", "documents": ["bread"]}),
    ],
)
def test_no_request_waits_for_a_thread_of_the_web_framework(
    path: str, body: dict[str, Any], tiny: dict[str, Any]
) -> None:
    """A plain function as a dependency would take such a thread for each request, also for one that is refused."""
    app = create_app(tiny["settings"])

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://assay", timeout=None) as http,
        ):
            limiter = anyio.to_thread.current_default_thread_limiter()
            tasks = [object() for _ in range(int(limiter.total_tokens))]
            for task in tasks:
                limiter.acquire_on_behalf_of_nowait(task)
            try:
                async with asyncio.timeout(WAIT_S):
                    return await http.post(path, json=body)
            finally:
                for task in tasks:
                    limiter.release_on_behalf_of(task)

    assert asyncio.run(ask()).status_code == 200
