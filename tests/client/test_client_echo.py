"""A gateway that repeats the request's Authorization: no error, result, log line or traceback shows the key."""

import json
import logging
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from assay_client import Endpoint
from assay_client._redaction import Redaction
from assay_client.client import RewardClient
from assay_client.errors import ConnectError, GenerationFailed, InvalidAnswer, ServerError

if TYPE_CHECKING:
    from tests.client.conftest import Either, Loopback, ReceivedRequest, Reply, Script, Wire

    Start = Callable[[Script], Loopback]

# With each kind of character that JSON or Python's `repr` may write with an escape.
KEY = "sk-Very+Secret/1\\2\"3'4="
PARTS = ("Secret", "sk-V", "3'4", "2\\u0022")


def shown(value: object) -> str:
    """All that a person may see of a value, or of an error with its causes."""
    if isinstance(value, BaseException):
        return f"{value} {value!r} {value.args!r} {''.join(traceback.format_exception(value))}"
    return f"{value} {value!r}"


def assert_hidden(value: object) -> None:
    text = shown(value)
    # The source lines of this file in a traceback are not what the client shows.
    assert not [part for part in PARTS if part in text], text
    assert "[AP" in text or "nothing of it is shown" in text  # an excerpt may be cut within "[API key]"


def escape_all(text: str) -> str:
    return "".join(f"\\u{ord(character):04X}" for character in text)


BODIES: dict[str, Callable[[str], bytes]] = {
    "page": lambda sent: f"<h1>401</h1> header was {sent}".encode(),
    "cut in the key": lambda sent: b"x" * 110 + sent.encode(),
    "foreign JSON": lambda sent: json.dumps({"detail": {"authorization": sent}}).encode(),
    "slashes escaped": lambda sent: json.dumps({"got": sent}).replace("/", "\\/").encode(),
    "all escaped": lambda sent: f'{{"got": "{escape_all(sent)}"}}'.encode(),
    "detail": lambda sent: json.dumps({"code": "unauthorized", "detail": f"bad {sent}"}).encode(),
    "error": lambda sent: json.dumps(
        {"error": {"code": f"bad {sent}", "message": f"unknown {sent}", "param": sent, "retryable": False}}
    ).encode(),
    "escaped error": lambda sent: (
        f'{{"error": {{"code": "unauthorized", "message": "{escape_all(sent)}", "retryable": false}}}}'
    ).encode(),
}


@pytest.mark.parametrize("kind", BODIES)
def test_an_error_body_that_repeats_the_key(
    either: "Either", loopback: "Start", reply: "type[Reply]", caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.INFO)
    server = loopback(lambda asked, number: reply(BODIES[kind](asked.headers["authorization"]), 401))
    for method, words in (("score", ([("p", "1")],)), ("ready", ())):
        with pytest.raises(ServerError) as raised:
            either.call(method, *words, options={"url": server.url, "api_key": KEY})
        assert server.asked[-1].headers["authorization"] == f"Bearer {KEY}"
        assert_hidden(raised.value)
    assert "Secret" not in caplog.text


def test_an_authorization_of_the_callers_own_is_hidden_as_well(
    either: "Either", loopback: "Start", reply: "type[Reply]"
) -> None:
    server = loopback(lambda asked, number: reply(asked.headers["authorization"].encode(), 403))
    for value in (f"Basic {KEY}", KEY):
        with pytest.raises(ServerError) as raised:
            either.score([("p", "1")], url=server.url, headers={"authorization": value})
        assert_hidden(raised.value)


def test_an_answer_with_status_200_that_repeats_the_key(
    either: "Either", loopback: "Start", reply: "type[Reply]", wire: "type[Wire]"
) -> None:
    def script(asked: "ReceivedRequest", number: int) -> "Reply":
        sent = asked.headers["authorization"]
        answer = wire.scored(asked.body)
        if number == 0:
            answer["data"][1]["error"] |= {"message": f"got {sent}", "code": sent, "param": sent}
        if number == 1:
            answer["data"][0]["score"] = "x" * 60 + sent  # a part of it would fit into the excerpt
        return reply(b"OK " + sent.encode() if number == 2 else answer)

    server = loopback(script)
    result = either.score([("p", "1"), ("p", "bad")], url=server.url, api_key=KEY)
    assert result.scores(missing=None) == [1.0, None]
    assert_hidden(result)
    assert_hidden(result.failures[0].to_exception())
    for _ in range(2):
        with pytest.raises(InvalidAnswer) as raised:
            either.score([("p", "1"), ("p", "bad")], url=server.url, api_key=KEY)
        assert_hidden(raised.value)


def test_a_short_key_changes_no_other_part_of_an_answer(
    either: "Either", loopback: "Start", reply: "type[Reply]", wire: "type[Wire]"
) -> None:
    """A key such as "1" or "error" may be part of a number, a name or an id."""
    server = loopback(lambda asked, number: reply(wire.scored(asked.body)))
    items = [{"prompt": "p", "completion": text, "id": f"error {text}"} for text in ("1.5", "bad")]
    for key in ("1", "error", "5", "message", "e"):
        result = either.score(items, url=server.url, api_key=key)
        assert result.scores(missing=None) == [1.5, None]
        assert [row.id for row in result.data] == ["error 1.5", "error bad"]
        assert (result.model, result.fingerprint) == ("crs", "f1")


def test_headers_that_repeat_the_key(either: "Either", loopback: "Start", reply: "type[Reply]") -> None:
    server = loopback(lambda asked, number: reply(b"{}", 200, {"X-Request-ID": asked.headers["authorization"]}))
    with pytest.raises(InvalidAnswer, match="is not to this request") as raised:
        either.score([("p", "1")], url=server.url, api_key=KEY)
    assert_hidden(raised.value)


@pytest.fixture
def malformed() -> Iterator[str]:
    """A server whose answers have a header line without a colon, with the key in it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                head = connection.recv(65536).decode()
                sent = next(line for line in head.split("\r\n") if line.lower().startswith("authorization"))
                connection.sendall(f"HTTP/1.1 401 No\r\nno header but {sent.partition(': ')[2]}\r\n\r\n".encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(2)


def test_a_broken_answer_that_repeats_the_key(either: "Either", malformed: str) -> None:
    with pytest.raises(ConnectError, match="RemoteProtocolError") as raised:
        either.score([("p", "1")], url=malformed, api_key=KEY, max_retries=0)
    assert_hidden(raised.value)


@pytest.mark.parametrize("kind", ["page", "cut in the key", "slashes escaped", "all escaped", "finish_reason"])
def test_an_endpoint_of_completions_that_repeats_the_key(loopback: "Start", reply: "type[Reply]", kind: str) -> None:
    def script(asked: "ReceivedRequest", number: int) -> "Reply":
        sent = asked.headers["authorization"]
        if kind == "finish_reason":
            return reply({"choices": [{"index": 0, "message": {"content": "text"}, "finish_reason": f"filter {sent}"}]})
        body = b"x" * 190 + sent.encode() if kind == "cut in the key" else BODIES[kind](sent)
        return reply(body, 401)

    endpoint = Endpoint(base_url=f"{loopback(script).url}/v1", model="m", api_key=KEY)
    assert "Secret" not in repr(endpoint)
    if kind == "finish_reason":
        assert_hidden(endpoint.generate("p", 1)[0])
        return
    with pytest.raises(GenerationFailed) as raised:
        endpoint.generate("p", 2)
    assert_hidden(raised.value)


def test_a_broken_answer_of_an_endpoint_of_completions(malformed: str) -> None:
    with pytest.raises(ConnectError) as raised:
        Endpoint(base_url=malformed, model="m", api_key=KEY).generate("p", 1)
    assert_hidden(raised.value)


def test_a_redaction_has_no_repr_with_the_key_and_nothing_to_do_without_one() -> None:
    client = RewardClient("http://assay.test", api_key=KEY)
    assert "Secret" not in f"{Redaction.of(KEY)!r} {client!r}"
    assert Redaction.of(None, {"X-Team": "a"}).redact("Bearer a") == "Bearer a"


def test_other_errors_are_shown_as_they_are(either: "Either", loopback: "Start", reply: "type[Reply]") -> None:
    server = loopback(lambda asked, number: reply(b"proxy says no", 403))
    with pytest.raises(ServerError, match="403 http_403: proxy says no"):
        either.score([("p", "1")], url=server.url, api_key=KEY)
    values: list[Any] = [Redaction.of(KEY).redact(text) for text in ("", "sk-Very", "proxy says no")]
    assert values == ["", "sk-Very", "proxy says no"]
