"""A fake Assay: honest answers, where a completion is a number and its own score, and a server for faults."""

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import httpx
import pytest

from assay_client._base_client import Clock
from assay_client.client import AsyncRewardClient, RewardClient


class FakeClock(Clock):
    """Time that passes only in sleeps; every draw is 0.5."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def get_now_s(self) -> float:
        return self.now

    def draw(self) -> float:
        return 0.5

    def sleep(self, delay_s: float, stop: threading.Event) -> None:
        self.slept.append(delay_s)
        self.now += delay_s

    async def sleep_async(self, delay_s: float) -> None:
        self.sleep(delay_s, threading.Event())


class Wire:
    """Bodies as a server without faults would write them."""

    @staticmethod
    def value(logit: float, prob: float | None = None) -> dict[str, Any]:
        counts = {
            "prompt_tokens": 7,
            "completion_tokens": 2,
            "truncated_tokens": 0,
            "dropped_tokens": 0,
            "control_tokens_as_text": 0,
        }
        return {"logit": logit, **({} if prob is None else {"prob": prob}), **counts}

    @staticmethod
    def provenance(fingerprint: str = "f1") -> dict[str, Any]:
        hashes = {"adapter_sha256": None, "head_sha256": "bb", "template_sha256": "cc"}
        signal = {"model": "m", "revision": "r", "dtype": "float32", "compute": "float32", **hashes}
        blend = {"name": "crs", "weights": {"preference": 1}, "standardise": "none"}
        return {"blend": blend, "signals": {"preference": signal}, "fingerprint": fingerprint}

    @classmethod
    def row(cls, index: int, item: dict[str, Any]) -> dict[str, Any]:
        """A score, or for the completion "bad" an error."""
        name = {"id": item["id"]} if "id" in item else {}
        text = item["completion"] if "completion" in item else item["messages"][-1]["content"]
        if text == "bad":
            error = {
                "code": "special_token",
                "message": "holds <s>",
                "param": "completion",
                "retryable": False,
            }
            return {"index": index, **name, "error": error}
        return {
            "index": index,
            **name,
            "score": float(text),
            "signals": {"preference": cls.value(float(text))},
        }

    @classmethod
    def scored(cls, asked: dict[str, Any], fingerprint: str = "f1") -> dict[str, Any]:
        rows = [cls.row(index, item) for index, item in enumerate(asked["items"])]
        return {
            "id": "score-1",
            "object": "list",
            "created": 1,
            "model": None if "weights" in asked else asked.get("model", "crs"),
            "data": rows,
            "provenance": cls.provenance(fingerprint),
        }

    @classmethod
    def ranked(cls, asked: dict[str, Any]) -> dict[str, Any]:
        given = [one if isinstance(one, dict) else {"completion": one} for one in asked["completions"]]
        rows = [cls.row(index, item) for index, item in enumerate(given)]
        results = sorted((row for row in rows if "score" in row), key=lambda row: -float(row["score"]))
        for above, below in pairwise(results):
            above["margin"] = above["score"] - below["score"]
        return {
            "id": "rank-1",
            "object": "rank",
            "created": 1,
            "model": "crs",
            "results": [{"margin": None, **row} for row in results][: asked.get("top_n")],
            "errors": [row for row in rows if "error" in row],
            "provenance": cls.provenance(),
        }

    @classmethod
    def compared(cls, asked: dict[str, Any]) -> dict[str, Any]:
        a, b = float(asked["a"]), float(asked["b"])
        preference = {"margin": a - b, "prob_a": 0.75, "a": cls.value(a), "b": cls.value(b)}
        absolute = {"margin": a - b, "a": cls.value(a, 0.5), "b": cls.value(b, 0.25)}
        provenance = cls.provenance()
        del provenance["blend"]
        return {
            "id": "compare-1",
            "object": "comparison",
            "created": 1,
            "signals": {"preference": preference, "absolute": absolute},
            "blends": {"crs": {"margin": 0.5}},
            "provenance": provenance,
        }

    @classmethod
    def honest(cls, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        makers = {
            "/v1/score": cls.scored,
            "/v1/rank": cls.ranked,
            "/v1/compare": cls.compared,
            "/v1/render": cls.rendered,
        }
        return {"version": "1"} if path in ("/info", "/ready") else makers[path](asked)

    @classmethod
    def rendered(cls, asked: dict[str, Any]) -> dict[str, Any]:
        signal = {
            "text": "<user>p</user>1.5",
            "ids": [5, 6, 7, 8],
            "boundary": 2,
            "score_position": {"policy": "last_token", "start": 3, "end": 4},
            "truncated_tokens": 1,
            "dropped_tokens": 0,
            "control_tokens_as_text": 0,
        }
        scored = [cls.row(index, item) for index, item in enumerate(asked["items"])]
        keys = ("index", "id", "error")
        rows = [{key: row[key] for key in keys if key in row} for row in scored]
        return {
            "object": "list",
            "data": [row if "error" in row else {**row, "signals": {"preference": signal}} for row in rows],
        }

    @staticmethod
    def answer(request: httpx.Request, status: int = 200, **content: Any) -> httpx.Response:
        """An answer with the request's id, as the service sends it."""
        headers = {"X-Request-ID": request.headers["x-request-id"], **content.pop("headers", {})}
        return httpx.Response(status, headers=headers, **content)

    @staticmethod
    def refusal(code: str, *, retryable: bool, param: str | None = None) -> dict[str, Any]:
        error = {"code": code, "message": "no.", "param": param, "request_id": "x", "retryable": retryable}
        return {"error": error}


@dataclass
class Reply:
    """What the loopback server does with one request; `cut_at` sends that many bytes and then resets.

    The request's id is sent back with every answer; a header of that name replaces it, or with None leaves it out.
    """

    body: dict[str, Any] | bytes
    status: int = 200
    headers: dict[str, str | None] = field(default_factory=dict)
    delay_s: float = 0.0
    cut_at: int | None = None
    drip_s: float = 0.0

    def sent_headers(self, request_id: str | None) -> dict[str, str]:
        headers = {"X-Request-ID": request_id, **self.headers}
        return {name: value for name, value in headers.items() if value is not None}

    def parts(self) -> list[bytes]:
        """The body as it is written: whole, up to its cut, or byte by byte."""
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        return [bytes([byte]) for byte in body] if self.drip_s else [body]


@dataclass
class ReceivedRequest:
    """One request that the loopback server saw."""

    path: str
    request_id: str | None
    body: dict[str, Any]
    port: int  # of the client's end of the connection
    team: str | None  # a header of the caller's own
    headers: dict[str, str]  # by name in lower case


Script = Callable[[ReceivedRequest, int], Reply]


class Loopback:
    """A real server on 127.0.0.1 whose answers a script decides, from the request and its number from 0."""

    def __init__(self, script: Script) -> None:
        self.asked: list[ReceivedRequest] = []
        self.open = 0  # connections
        self.most_open = 0
        self.busy = 0  # requests without an answer so far
        self.most_busy = 0
        lock = threading.Lock()
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                with lock:
                    loopback.open += 1
                    loopback.most_open = max(loopback.most_open, loopback.open)

            def finish(self) -> None:
                super().finish()
                with lock:
                    loopback.open -= 1

            def log_message(self, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                body, get = json.loads(raw or b"{}"), self.headers.get
                headers = {name.lower(): value for name, value in self.headers.items()}
                port = self.client_address[1]
                asked = ReceivedRequest(self.path, get("X-Request-ID"), body, port, get("X-Team"), headers)
                with lock:
                    number = len(loopback.asked)
                    loopback.asked.append(asked)
                    loopback.busy += 1
                    loopback.most_busy = max(loopback.most_busy, loopback.busy)
                self.answer(script(asked, number), asked.request_id)

            do_GET = do_POST

            def answer(self, reply: Reply, request_id: str | None) -> None:
                parts = reply.parts()
                time.sleep(reply.delay_s)
                with lock:  # before the client can see the answer and send its next request
                    loopback.busy -= 1
                try:
                    self.send_response(reply.status)
                    for name, value in reply.sent_headers(request_id).items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(sum(map(len, parts))))
                    self.end_headers()
                    for part in parts:
                        self.wfile.write(part[: reply.cut_at])
                        time.sleep(reply.drip_s)
                except OSError:  # the client hung up; some scripts want that
                    self.close_connection = True
                if reply.cut_at is not None:
                    # Linger 0 makes close() a reset instead of an end.
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def wait_until_open(self, count: int) -> bool:
        """Whether `count` connections are open within two seconds."""
        until_s = time.monotonic() + 2
        while self.open != count and time.monotonic() < until_s:
            time.sleep(0.01)
        return self.open == count

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Either:
    """The same call through the sync or the async client."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def call(self, method: str, *args: object, options: dict[str, Any], **named: object) -> Any:
        """What `method` returns, from a client that is made with `options` and closed again."""
        url = options.pop("url", "http://assay.test")

        async def asynchronously() -> Any:
            async with AsyncRewardClient(url, **options) as client:
                return await getattr(client, method)(*args, **named)

        if self.kind == "async":
            return asyncio.run(asynchronously())
        with RewardClient(url, **options) as client:
            return getattr(client, method)(*args, **named)

    def score(self, items: Sequence[object], **options: Any) -> Any:
        return self.call("score", items, options=options)


@pytest.fixture(params=["sync", "async"])
def either(request: pytest.FixtureRequest) -> Either:
    return Either(request.param)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def wire() -> type[Wire]:
    return Wire


@pytest.fixture
def reply() -> type[Reply]:
    return Reply


@pytest.fixture
def loopback() -> Iterator[Callable[[Script], Loopback]]:
    running: list[Loopback] = []

    def start(script: Script) -> Loopback:
        running.append(Loopback(script))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def honest(wire: type[Wire]) -> httpx.MockTransport:
    def handler(request: httpx.Request) -> httpx.Response:
        return wire.answer(request, json=wire.honest(request.url.path, json.loads(request.content)))

    return httpx.MockTransport(handler)
