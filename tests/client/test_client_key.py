"""The API key: it is sent, and appears nowhere else."""

import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from assay_client import cli
from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.errors import InvalidInput, PermissionDenied, Unauthorized

if TYPE_CHECKING:
    from tests.client.conftest import Either, Loopback, ReceivedRequest, Reply, Script, Wire

    Start = Callable[[Script], Loopback]

KEY = "sk-Very+Secret/123="


@pytest.fixture
def server(loopback: "Start", wire: "type[Wire]", reply: "type[Reply]") -> "Loopback":
    """A gateway: 401 without the key, 403 for the model "other"."""

    def script(asked: "ReceivedRequest", number: int) -> "Reply":
        if asked.headers.get("authorization") != f"Bearer {KEY}":
            return reply(b"no", 401, {"X-Request-ID": None})
        if asked.body.get("model") == "other":
            return reply(wire.refusal("permission_denied", retryable=False), 403)
        return reply(wire.honest(asked.path, asked.body))

    return loopback(script)


def test_the_key_is_sent_with_every_request_and_logged_by_nobody(
    either: "Either", server: "Loopback", caplog: pytest.LogCaptureFixture
) -> None:
    # Other packages set the level of httpx's logger when they are imported.
    for logger in (None, "httpx", "httpcore"):
        caplog.set_level(logging.DEBUG, logger)
    assert either.score([("p", "1")], url=server.url, api_key=KEY).scores() == [1.0]
    assert either.call("ready", options={"url": server.url, "api_key": KEY}) is True
    assert "HTTP Request" in caplog.text
    assert "Secret" not in caplog.text


def test_a_missing_key_and_a_forbidden_model_are_errors_of_their_own(either: "Either", server: "Loopback") -> None:
    with pytest.raises(Unauthorized, match=r"^401 http_401: no \(request \w+\)"):
        either.score([("p", "1")], url=server.url)
    with pytest.raises(Unauthorized) as raised:
        either.score([("p", "1")], url=server.url, api_key=KEY + "x")
    assert "Secret" not in repr(raised.value) + str(raised.value)
    with pytest.raises(PermissionDenied, match="403 permission_denied"):
        either.call("score", [("p", "1")], options={"url": server.url, "api_key": KEY}, model="other")
    assert len(server.asked) == 3  # none was tried again


@pytest.mark.parametrize("kind", [RewardClient, AsyncRewardClient])
def test_a_copy_has_the_key_and_no_text_has_it(kind: Any, server: "Loopback") -> None:
    client = kind(server.url, api_key=KEY)
    again = pickle.loads(pickle.dumps(client))
    assert again._api_key == KEY
    assert repr(client) == repr(again) == f"{kind.__name__}({server.url!r})"
    assert "Secret" not in f"{client} {again!r}"


@pytest.mark.parametrize("key", ["", "two words", "Secret\n", "Sécret", "Secret\x00", 3, b"Secret"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(key: Any) -> None:
    with pytest.raises(InvalidInput, match="`api_key` must be text of visible ASCII") as raised:
        RewardClient("http://assay.test", api_key=key)
    assert "cret" not in str(raised.value)


def test_a_second_authorization_is_refused() -> None:
    with pytest.raises(InvalidInput, match="exclude each other"):
        RewardClient("http://assay.test", api_key=KEY, headers={"authorization": "Basic eA=="})


@pytest.mark.parametrize("url", ["http://me:Secret@assay.test", "https://Secret@assay.test/x", "http://a:Secret@[::1"])
def test_an_address_with_a_password_is_refused_and_not_repeated(url: str) -> None:
    """Addresses are printed in errors, and httpx logs them."""
    with pytest.raises(InvalidInput, match="must not have a user name or password") as raised:
        RewardClient(["http://assay.test", url])
    assert "Secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://assay.test?key=Secret", "https://assay.test/x#Secret", "http://assay.test/?"])
def test_an_address_with_a_query_is_refused_and_not_repeated(url: str) -> None:
    """The path of a request would become a part of the query."""
    with pytest.raises(InvalidInput, match="must end before") as raised:
        RewardClient(["http://assay.test", url])
    assert "Secret" not in str(raised.value)


COMPARE = ["compare", "--prompt", "p", "--a", "3", "--b", "1"]


@pytest.mark.parametrize("words", [["score"], ["rank"], ["render"], COMPARE])
def test_every_command_reads_the_key_from_a_file(
    server: "Loopback", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    rows, key = tmp_path / "in.jsonl", tmp_path / "key"
    rows.write_text(
        '{"prompt": "p", "completions": ["1"]}\n' if words == ["rank"] else '{"prompt": "p", "completion": "1"}\n'
    )
    key.write_text(f"{KEY}\n")
    words = [*words, *([str(rows)] if len(words) == 1 else []), "--url", server.url]
    assert CliRunner().invoke(cli.app, [*words, "--api-key-file", str(key)]).exit_code == 0
    refused = CliRunner().invoke(cli.app, words)
    assert refused.exit_code == 2
    assert re.fullmatch(r"assay: 401 http_401: no \(request \w+\)\n", refused.stderr)
    monkeypatch.setenv("ASSAY_API_KEY_FILE", str(key))
    assert CliRunner().invoke(cli.app, words).exit_code == 0


@pytest.mark.parametrize("content", [b"", b"\n", b"Secret of mine\n", b"Secret\nSecret\n", b"S\xc3\xa9cret\n", None])
def test_a_file_without_a_key_is_refused_and_not_repeated(
    server: "Loopback", tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    done = CliRunner().invoke(cli.app, [*COMPARE, "--url", server.url, "--api-key-file", str(path)])
    assert done.exit_code == 2
    assert done.stderr.startswith("assay: ")
    assert "cret" not in done.stderr.replace(str(path), "")
    assert server.asked == []
