"""Both clients against faults: a scripted transport for what a server says, a real socket for the network."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.errors import (
    ConnectError,
    DeadlineExceeded,
    FingerprintChanged,
    InvalidAnswer,
    InvalidInput,
    ItemsFailed,
    ServerError,
    Timeout,
    TransportError,
)

if TYPE_CHECKING:
    from tests.client.conftest import Either, FakeClock, Loopback, ReceivedRequest, Reply, Script, Wire

    Start = Callable[[Script], Loopback]

ITEM = ("p", "1.5")


def scripted(wire: "type[Wire]", *answers: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[Any]]:
    """A transport that gives `answers` in turn, then honest ones; and the requests it saw."""
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) <= len(answers):
            answer = answers[len(seen) - 1]
            if isinstance(answer, Exception):
                raise answer
            answer.headers.setdefault("X-Request-ID", request.headers["x-request-id"])
            return answer
        return wire.answer(request, json=wire.honest(request.url.path, json.loads(request.content)))

    return httpx.MockTransport(handler), seen


def test_scores_come_back_in_order_through_chunks(either: "Either", honest: httpx.MockTransport) -> None:
    items = [("p", str(n)) for n in range(100)]
    result = either.score(items, transport=honest, chunk_size=7, max_concurrency=3)
    assert result.scores() == [float(n) for n in range(100)]
    assert [row.index for row in result.data] == list(range(100))


def test_no_items_are_still_a_request(either: "Either", wire: "type[Wire]") -> None:
    transport, seen = scripted(wire)
    result = either.score([], transport=transport)
    assert json.loads(seen[0].content) == {"items": []}
    assert (result.data, result.scores(), result.fingerprint) == ((), [], "f1")


def test_a_failed_item_stays_in_its_place_and_has_no_score(either: "Either", honest: httpx.MockTransport) -> None:
    result = either.score([("p", "1"), ("p", "bad"), ("p", "3")], transport=honest)
    assert [type(row).__name__ for row in result.data] == ["Score", "ScoreFailure", "Score"]
    with pytest.raises(ItemsFailed, match="1 of 3 items failed; the first: item 1: special_token"):
        result.scores()


def test_rank_and_compare(either: "Either", honest: httpx.MockTransport) -> None:
    ranked = either.call("rank", "p", ["1", "3", "2"], options={"transport": honest}, top_n=2)
    assert [(row.index, row.score) for row in ranked.results] == [(1, 3.0), (2, 2.0)]
    compared = either.call("compare", "p", "3", "1", options={"transport": honest})
    assert compared.signals["preference"].margin == 2.0


def test_models_and_info(either: "Either", wire: "type[Wire]") -> None:
    cards = {"object": "list", "data": [{"id": "crs", "object": "model", "kind": "blend"}]}

    def handler(request: httpx.Request) -> httpx.Response:
        return wire.answer(request, json=cards if request.url.path == "/v1/models" else {"version": "1"})

    options = {"transport": httpx.MockTransport(handler)}
    assert [card.id for card in either.call("models", options=dict(options))] == ["crs"]
    assert either.call("info", options=dict(options)) == {"version": "1"}


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False)])
def test_ready_says_what_the_service_says(either: "Either", wire: "type[Wire]", status: int, ready: bool) -> None:
    transport = httpx.MockTransport(lambda request: wire.answer(request, status, json={}))
    assert either.call("ready", options={"transport": transport}) is ready


def test_ready_is_false_where_nobody_listens_and_raises_where_it_is_not_assay(either: "Either") -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert either.call("ready", options={"url": f"http://127.0.0.1:{port}"}) is False
    with pytest.raises(ServerError, match="404 http_404"):
        either.call("ready", options={"transport": httpx.MockTransport(lambda request: httpx.Response(404))})


def test_overload_is_waited_out_as_long_as_the_server_asks(
    either: "Either", wire: "type[Wire]", clock: "FakeClock"
) -> None:
    full = httpx.Response(429, headers={"Retry-After": "4"}, json=wire.refusal("overloaded", retryable=True))
    transport, seen = scripted(wire, full)
    assert either.score([ITEM], transport=transport, clock=clock).scores() == [1.5]
    assert clock.slept == [4.5]
    assert len({request.headers["x-request-id"] for request in seen}) == 1


def test_a_full_queue_is_waited_out_beyond_the_number_of_retries(
    either: "Either", wire: "type[Wire]", clock: "FakeClock"
) -> None:
    """Of many chunks some are refused often; each refusal says when to come back, and only the deadline ends that."""

    def refuse(**body: Any) -> list[httpx.Response]:
        return [httpx.Response(429, headers={"Retry-After": "4"}, **body) for _ in range(9)]

    full = wire.refusal("overloaded", retryable=True)
    transport, seen = scripted(wire, *refuse(json=full))
    assert either.score([ITEM], transport=transport, clock=clock, max_retries=1).scores() == [1.5]
    assert (len(seen), clock.slept) == (10, [4.5] * 9)
    for limits, tries in (({"max_retries": 0}, 1), ({"deadline_s": 10}, 3)):
        transport, seen = scripted(wire, *refuse(json=full))
        with pytest.raises(ServerError, match="429 overloaded"):
            either.score([ITEM], transport=transport, clock=clock, **limits)
        assert len(seen) == tries
    transport, seen = scripted(wire, *refuse(text="slow down"))
    with pytest.raises(ServerError, match="429 http_429"):  # another program's limit
        either.score([ITEM], transport=transport, clock=clock, max_retries=2)
    assert len(seen) == 3


def test_each_try_says_how_long_it_waits(either: "Either", wire: "type[Wire]", clock: "FakeClock") -> None:
    transport, seen = scripted(wire, httpx.Response(503, headers={"Retry-After": "16"}))
    assert either.score([ITEM], transport=transport, clock=clock, timeout_s=10, deadline_s=25).scores() == [1.5]
    assert [request.headers["x-request-timeout-ms"] for request in seen] == ["10000", "7000"]
    transport, seen = scripted(wire)
    either.score([ITEM], transport=transport, timeout_s=float("inf"), deadline_s=float("inf"))
    assert seen[0].headers["x-request-timeout-ms"] == "1000000000"


def test_a_500_then_an_answer_is_an_answer(either: "Either", wire: "type[Wire]", clock: "FakeClock") -> None:
    transport, seen = scripted(wire, httpx.Response(500), httpx.ConnectError("refused"), httpx.ReadTimeout("slow"))
    assert either.score([ITEM], transport=transport, clock=clock).scores() == [1.5]
    assert clock.slept == [0.1875, 0.375, 0.75]
    assert len(seen) == 4


def test_a_422_is_not_tried_again_and_says_what_the_server_said(
    either: "Either", wire: "type[Wire]", clock: "FakeClock"
) -> None:
    refusal = wire.refusal("invalid_request", retryable=False, param="items[0].prompt")
    transport, seen = scripted(wire, httpx.Response(422, json=refusal))
    with pytest.raises(ServerError) as raised:
        either.score([ITEM], transport=transport, clock=clock)
    error = raised.value
    assert (error.status, error.code, error.param, error.retryable) == (
        422,
        "invalid_request",
        "items[0].prompt",
        False,
    )
    assert error.request_id == seen[0].headers["x-request-id"]
    assert (len(seen), clock.slept) == (1, [])


def test_retries_end(either: "Either", wire: "type[Wire]", clock: "FakeClock") -> None:
    transport, seen = scripted(wire, *[httpx.Response(503, text="<html>busy</html>")] * 9)
    with pytest.raises(ServerError, match="503 http_503: <html>busy</html>"):
        either.score([ITEM], transport=transport, clock=clock, max_retries=2)
    assert len(seen) == 3


def test_a_wait_beyond_the_deadline_is_not_begun(either: "Either", wire: "type[Wire]", clock: "FakeClock") -> None:
    full = httpx.Response(429, headers={"Retry-After": "30"}, json=wire.refusal("overloaded", retryable=True))
    transport, seen = scripted(wire, full)
    with pytest.raises(ServerError, match="429 overloaded"):
        either.score([ITEM], transport=transport, clock=clock, deadline_s=20)
    assert (len(seen), clock.slept) == (1, [])


def test_the_deadline_covers_all_tries_together(either: "Either", wire: "type[Wire]", clock: "FakeClock") -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        clock.now += 10
        return httpx.Response(503)

    with pytest.raises(ServerError):
        either.score([ITEM], transport=httpx.MockTransport(slow), clock=clock, deadline_s=25, max_retries=99)
    assert 1020 <= clock.now <= 1035


def test_a_model_that_changes_between_chunks_fails_the_call(either: "Either", wire: "type[Wire]") -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        return wire.answer(request, json=wire.scored(asked, "f2" if asked["items"][0]["completion"] == "2" else "f1"))

    with pytest.raises(FingerprintChanged):
        either.score([("p", "1"), ("p", "2")], transport=httpx.MockTransport(handler), chunk_size=1)


def test_a_failed_chunk_fails_the_call_and_stops_the_others(either: "Either", wire: "type[Wire]") -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        seen.append(asked["items"][0]["completion"])
        if seen[-1] == "0":
            return httpx.Response(422, json=wire.refusal("invalid_request", retryable=False))
        return httpx.Response(503)

    begun = time.monotonic()
    with pytest.raises(ServerError, match="422"):
        either.score(
            [("p", str(n)) for n in range(50)],
            transport=httpx.MockTransport(handler),
            chunk_size=1,
            max_concurrency=2,
            max_retries=50,
        )
    assert time.monotonic() - begun < 2
    assert "49" not in seen


def test_after_a_failed_chunk_no_thread_goes_on_waiting(wire: "type[Wire]") -> None:
    waits = threading.Event()

    def handler(request: httpx.Request) -> httpx.Response:
        if json.loads(request.content)["items"][0]["completion"] == "0":
            waits.set()
            return httpx.Response(503, headers={"Retry-After": "30"})
        assert waits.wait(2)
        return httpx.Response(422)

    before = set(threading.enumerate())
    with RewardClient("http://assay.test", transport=httpx.MockTransport(handler), chunk_size=1) as client:
        with pytest.raises(ServerError, match="422"):
            client.score([("p", "0"), ("p", "1")])
        for thread in set(threading.enumerate()) - before:
            thread.join(2)
            assert not thread.is_alive()


@pytest.mark.parametrize("broken", [{"score": None}, {"index": 1}, {"id": "z"}], ids=["null", "index", "id"])
def test_an_answer_that_breaks_the_wire_is_not_tried_again(
    either: "Either", wire: "type[Wire]", clock: "FakeClock", broken: dict[str, Any]
) -> None:
    body = wire.scored({"items": [{"completion": "1"}]})
    body["data"][0].update(broken)
    transport, seen = scripted(wire, httpx.Response(200, json=body))
    with pytest.raises(InvalidAnswer) as raised:
        either.score([ITEM], transport=transport, clock=clock)
    assert raised.value.request_id == seen[0].headers["x-request-id"]
    assert len(seen) == 1


def test_nothing_is_sent_for_a_malformed_item(either: "Either", wire: "type[Wire]") -> None:
    transport, seen = scripted(wire)
    with pytest.raises(InvalidInput, match=r"items\[1\]"):
        either.score([ITEM, {"prompt": "p"}], transport=transport, chunk_size=1)
    assert seen == []


@pytest.mark.parametrize(
    "options", [{"chunk_size": 0}, {"max_concurrency": 0}, {"timeout_s": 0}, {"url": "localhost:8000"}]
)
def test_settings_out_of_range_are_refused(either: "Either", options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        either.call("ready", options=dict(options))


# --- Over a real socket


def test_nobody_listening_is_a_connect_error(either: "Either", clock: "FakeClock") -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(ConnectError) as raised:
        either.score([ITEM], url=f"http://127.0.0.1:{port}", clock=clock, max_retries=2)
    assert raised.value.request_id is not None
    assert clock.slept == [0.1875, 0.375]


def test_a_reset_in_the_middle_of_an_answer_is_tried_again(
    either: "Either", loopback: "Start", reply: "type[Reply]", wire: "type[Wire]", clock: "FakeClock"
) -> None:
    def script(asked: "ReceivedRequest", number: int) -> "Reply":
        return reply(wire.honest(asked.path, asked.body), cut_at=40 if number == 0 else None)

    server = loopback(script)
    assert either.score([ITEM], url=server.url, clock=clock).scores() == [1.5]
    assert len(server.asked) == 2
    assert server.asked[0].request_id == server.asked[1].request_id


def test_a_reset_every_time_is_a_connect_error(
    either: "Either", loopback: "Start", reply: "type[Reply]", clock: "FakeClock"
) -> None:
    server = loopback(lambda asked, number: reply(b"x" * 100, cut_at=40))
    with pytest.raises(ConnectError):
        either.score([ITEM], url=server.url, clock=clock, max_retries=1)
    assert len(server.asked) == 2


def test_a_slow_answer_times_out_and_is_tried_again(
    either: "Either", loopback: "Start", reply: "type[Reply]", wire: "type[Wire]"
) -> None:
    def script(asked: "ReceivedRequest", number: int) -> "Reply":
        return reply(wire.honest(asked.path, asked.body), delay_s=0.2 if number == 0 else 0)

    server = loopback(script)
    assert either.score([ITEM], url=server.url, timeout_s=0.1).scores() == [1.5]
    assert len(server.asked) == 2


@pytest.mark.parametrize(("times", "error"), [({"timeout_s": 0.05}, Timeout), ({"deadline_s": 0.05}, DeadlineExceeded)])
def test_a_dripping_answer_cannot_outlast_its_time(
    either: "Either", loopback: "Start", reply: "type[Reply]", times: dict[str, float], error: type[Exception]
) -> None:
    server = loopback(lambda asked, number: reply(b"x" * 1000, drip_s=0.01))
    begun = time.monotonic()
    with pytest.raises(error):
        either.score([ITEM], url=server.url, max_retries=0, **times)
    assert time.monotonic() - begun < 1


def test_closing_stops_a_call_that_waits(wire: "type[Wire]") -> None:
    answered = threading.Event()

    def handler(request: httpx.Request) -> httpx.Response:
        answered.set()
        return httpx.Response(503, headers={"Retry-After": "30"})

    client = RewardClient("http://assay.test", transport=httpx.MockTransport(handler))
    raised: list[BaseException] = []

    def score() -> None:
        try:
            client.score([ITEM])
        except TransportError as error:
            raised.append(error)

    thread = threading.Thread(target=score)
    thread.start()
    assert answered.wait(2)
    time.sleep(0.05)
    client.close()
    thread.join(2)
    assert not thread.is_alive()
    assert str(raised[0]).startswith("stopped")


def test_an_asgi_application_is_scored_in_process_and_its_silence_times_out(wire: "type[Wire]") -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"])
        if body.get("model") == "silent":
            await asyncio.sleep(60)
        answer = json.dumps(wire.scored(body)).encode()
        headers = [(name, value) for name, value in scope["headers"] if name == b"x-request-id"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with AsyncRewardClient("http://in", transport=transport, timeout_s=0.1, max_retries=0) as client:
            assert (await client.score([ITEM])).scores() == [1.5]
            with pytest.raises(Timeout):
                await client.score([ITEM], model="silent")

    asyncio.run(run())


def test_cancelling_an_async_call_cancels_its_requests() -> None:
    running = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running
        running += 1
        try:
            await asyncio.sleep(60)
        finally:
            running -= 1

    async def run() -> None:
        async with AsyncRewardClient("http://in", transport=httpx.ASGITransport(app), chunk_size=1) as client:
            call = asyncio.create_task(client.score([ITEM, ITEM]))
            while running < 2:
                await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert running == 0

    asyncio.run(run())
