"""The port is taken before models are loaded, and answers meanwhile; then the service has it."""

import errno
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import uvicorn

from assay_service import listen
from assay_service.errors import StartError


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    with listen.listen("127.0.0.1", 0, is_protected=True) as listening:
        yield listening


def test_a_second_service_on_the_port_is_refused_at_once(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    with pytest.raises(StartError, match=rf"another service running on 127\.0\.0\.1:{port}\? Stop it, or use --port"):
        listen.listen("127.0.0.1", port, is_protected=True)
    with pytest.raises(StartError, match="address already in use"):
        listen.listen("0.0.0.0", port, is_protected=True)


def test_addresses_that_are_not_of_this_machine_are_refused() -> None:
    with pytest.raises(StartError, match=r"--host 192\.0\.2\.1: not an address of this machine"):
        listen.listen("192.0.2.1", 0, is_protected=True)
    with pytest.raises(StartError, match=r"--host no-such-host\.invalid: no such address"):
        listen.listen("no-such-host.invalid", 0, is_protected=True)


def test_a_port_that_is_not_allowed_says_which_are() -> None:
    assert "--port 80: not allowed for this user" in listen._explain_failure(
        PermissionError(errno.EACCES, "denied"), "h", 80
    )


def test_urls_are_as_the_user_wrote_the_host(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    assert listen.build_url(taken, "localhost") == f"http://localhost:{port}"
    assert listen.build_url(taken, "::1") == f"http://[::1]:{port}"


def test_probes_and_requests_are_answered_while_models_load(taken: socket.socket) -> None:
    url = listen.build_url(taken, "127.0.0.1")
    with listen.answer_not_ready(taken):
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        for method, path in (("GET", "/ready"), ("GET", "/metrics"), ("POST", "/v1/score"), ("POST", "/health")):
            answer = httpx.request(method, f"{url}{path}", content=b"x" * 300_000 if method == "POST" else None)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            error = answer.json()["error"]
            assert (error["code"], error["retryable"], error["param"]) == ("not_ready", True, None)
            assert error["request_id"] == answer.headers["x-request-id"]


def test_no_request_is_lost_when_the_service_takes_over(taken: socket.socket) -> None:
    """A client that asks all the time hears 503, then the application; no connection is refused or broken."""
    url = listen.build_url(taken, "127.0.0.1")
    seen: list[int] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            seen.append(httpx.get(f"{url}/ready").status_code)

    async def application(scope: object, receive: object, send: object) -> None:
        assert callable(send)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": json.dumps({}).encode()})

    server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_config=None))
    with ThreadPoolExecutor(2) as pool:
        asking = pool.submit(ask)
        with listen.answer_not_ready(taken):
            while len(seen) < 20:
                time.sleep(0.01)
        running = pool.submit(server.run, [taken])
        before = len(seen)
        while len(seen) < before + 20:
            assert not asking.done(), asking.exception()
            time.sleep(0.01)
        over.set()
        asking.result()
        server.should_exit = True
        running.result()
    assert seen[0] == 503
    assert seen[-1] == 200
    assert seen == sorted(seen, reverse=True)
