"""`AppTransport`: an application starts, answers, fails, is too slow and stops as a service on the network would."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from assay_client.client import RewardClient
from assay_client.errors import DeadlineExceeded
from assay_client.in_process import AppTransport

LONG_S = 20


class App:
    """ASGI by hand: knows its lifespan, and answers by path."""

    def __init__(self, fails: str = "") -> None:
        self.said: list[str] = []
        self.asked = threading.Event()
        self._fails = fails

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        if scope["path"] == "/crash":
            raise ZeroDivisionError("of the application")
        if scope["path"] == "/slow":
            raise TimeoutError("of the application")
        if scope["path"] in ("/never", "/v1/models"):
            self.asked.set()
            await asyncio.Event().wait()
        body = (await receive())["body"]
        headers = [(b"x-path", scope["raw_path"]), (b"x-request-id", dict(scope["headers"]).get(b"x-request-id", b""))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in (body, b" ", str(self.said).encode()):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return None

    async def _live(self, receive: Any, send: Any) -> None:
        for phase in ("startup", "shutdown"):
            message = await receive()
            self.said.append(message["type"])
            if self._fails == phase:
                await send({"type": f"lifespan.{phase}.failed", "message": "no model"})
                return
            await send({"type": f"lifespan.{phase}.complete"})


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "assay-app"]


def test_an_application_starts_answers_from_any_thread_and_stops() -> None:
    app = App()
    with httpx.Client(transport=AppTransport(app), base_url="http://app") as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: client.post(f"/{i}", content=b"%d" % i), range(40)))
        assert threads() == ["assay-app"]
    assert [answer.text for answer in answers] == [f"{i} ['lifespan.startup']" for i in range(40)]
    assert [answer.headers["x-path"] for answer in answers] == [f"/{i}" for i in range(40)]
    assert app.said == ["lifespan.startup", "lifespan.shutdown"]
    assert not threads()


def test_what_the_application_raises_comes_out() -> None:
    with httpx.Client(transport=AppTransport(App()), base_url="http://app") as client:
        with pytest.raises(ZeroDivisionError, match="of the application"):
            client.get("/crash")
        with pytest.raises(TimeoutError, match="of the application"):
            client.get("/slow")
        assert client.get("/").status_code == 200


def test_an_application_that_does_not_start_or_stop_says_why() -> None:
    with pytest.raises(RuntimeError, match="startup failed: no model"):
        AppTransport(App(fails="startup"))
    transport = AppTransport(App(fails="shutdown"))
    with pytest.raises(RuntimeError, match="shutdown failed: no model"):
        transport.close()
    assert not threads()


def test_an_application_without_a_lifespan_is_served() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    with httpx.Client(transport=AppTransport(app), base_url="http://app") as client:
        assert client.get("/").status_code == 204


def test_a_client_waits_no_longer_than_it_said() -> None:
    transport = AppTransport(App())
    with RewardClient("http://app", transport=transport, deadline_s=0.2) as client, pytest.raises(DeadlineExceeded):
        client.models()


def test_a_request_in_flight_ends_with_the_application() -> None:
    app = App()
    transport = AppTransport(app)
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(httpx.Client(transport=transport, base_url="http://app").get, "/never", timeout=None)
        assert app.asked.wait(LONG_S)
        transport.close()
        with pytest.raises(httpx.ReadError, match="the application was stopped"):
            going.result(LONG_S)
