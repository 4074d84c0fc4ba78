"""A running service with the tiny models, for the clients of other servers."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from assay_service import create_app
from assay_service.api.rendering_cache import RenderingCache
from assay_service.compat_settings import CompatSettings
from tests.service.conftest import tiny

__all__ = ["tiny"]

RECORDED = Path(__file__).parent / "recorded"  # requests of real clients; see test_recorded_clients.py


def read_body(name: str) -> dict[str, Any]:
    """The JSON body of a recorded request."""
    body: dict[str, Any] = json.loads((RECORDED / f"{name}.http").read_bytes().partition(b"\r\n\r\n")[2])
    return body


@dataclasses.dataclass(frozen=True)
class Served:
    """A running service: its base URL, and its application for looking inside."""

    url: str
    app: FastAPI


Serve = Callable[..., Served]


def forget_items(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a service render and compute every item of this test, also those that it has scored before."""
    monkeypatch.setattr(served.app.state.scorer, "rendering_cache", RenderingCache(0))


@pytest.fixture(scope="session")
def serve(tiny: dict[str, Any]) -> Iterator[Serve]:
    """A function that serves the tiny models over a real socket, with the given `compat` settings."""
    running: dict[str, Served] = {}
    with ExitStack() as stack:

        def start(**compat: Any) -> Served:
            key = repr(sorted(compat.items()))
            if key not in running:
                settings = tiny["settings"].model_copy(update={"compat": CompatSettings.model_validate(compat)})
                running[key] = stack.enter_context(run_app(create_app(settings)))
            return running[key]

        yield start


@contextmanager
def run_app(app: FastAPI) -> Iterator[Served]:
    """Serve an application over a real socket."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it listened"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Served(f"http://127.0.0.1:{port}", app)
    finally:
        server.should_exit = True
        thread.join()


Answer = tuple[int, bytes]


@contextmanager
def run_gateway(url: str, intercept: Callable[[BaseHTTPRequestHandler], Answer | None]) -> Iterator[str]:
    """Serve an address that passes requests on to a service, unless `intercept` answers in its place."""

    class Gateway(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            status, body = intercept(self) or self.forward(sent)
            self.send_response(status)
            self.send_header("X-Request-ID", self.headers["X-Request-ID"])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def forward(self, sent: bytes) -> Answer:
            headers = {name: self.headers[name] for name in ("X-Request-ID", "Content-Type")}
            answer = httpx.post(url + self.path, content=sent, headers=headers, timeout=30)
            return answer.status_code, answer.content

    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def url(serve: Serve) -> str:
    """The base URL of the tiny models with default settings."""
    return serve().url
