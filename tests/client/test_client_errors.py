"""Errors cross process borders whole, and are what their names say."""

import copy
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from assay_client._raw_answer import RawAnswer, build_server_error
from assay_client.errors import (
    BY_CODE,
    BY_STATUS,
    AssayError,
    BodyTooLarge,
    ConnectError,
    DeadlineExceeded,
    FingerprintChanged,
    InvalidAnswer,
    InvalidInput,
    InvalidRequest,
    ItemFailed,
    ItemsFailed,
    NotReady,
    Overloaded,
    PermissionDenied,
    ServerError,
    Timeout,
    TransportError,
    Unauthorized,
)
from assay_service import errors as service_errors
from assay_service.api import schemas

if TYPE_CHECKING:
    from tests.client.conftest import Either, Loopback, Script, Wire
    from tests.client.conftest import Reply as Answer

ITEM = ItemFailed("holds <s>", index=3, id="x", code="special_token", param="completion", retryable=False)
EVERY = [
    InvalidInput("no"),
    TransportError("no"),
    ConnectError("no"),
    Timeout("no"),
    DeadlineExceeded("no"),
    ServerError("full", status=429, code="overloaded", param="items[1]", retryable=True),
    InvalidAnswer("no"),
    FingerprintChanged("f1", "f2"),
    ITEM,
    ItemsFailed((ITEM,), 5),
    Overloaded("full", status=429, code="overloaded", retryable=True, retry_after_s=1.5),
    FingerprintChanged("f1", "f2", ("http://a", "http://b")),
]


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("through", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy], ids=["pickle", "copy"])
def test_an_error_survives_a_process_border(error: AssayError, through: object) -> None:
    error = copy.copy(error)
    error.request_id = "r-1"
    again = through(error)  # type: ignore[operator]
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert set(vars(again)) == set(vars(error))
    assert again.request_id == "r-1"


def test_pickled_fields_keep_their_values() -> None:
    again = pickle.loads(pickle.dumps(ItemsFailed((ITEM,), 5)))
    assert again.total == 5
    assert again.failures[0].index == 3
    assert again.failures[0].code == "special_token"


def test_what_errors_say() -> None:
    assert str(EVERY[5]) == "429 overloaded at items[1]: full"
    assert str(EVERY[7]) == "the model changed during the call: fingerprint f1 became f2"
    assert str(EVERY[9]) == "1 of 5 items failed; the first: item 3 (x): special_token: holds <s>"


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_an_error_ends_with_the_id_of_its_request(error: AssayError) -> None:
    named = copy.copy(error)
    named.request_id = "r-1"
    assert str(named) == f"{error} (request r-1)"


@pytest.mark.parametrize(
    ("error", "standard"),
    [
        (InvalidInput, ValueError),
        (ConnectError, ConnectionError),
        (Timeout, TimeoutError),
        (DeadlineExceeded, TimeoutError),
        (InvalidAnswer, ValueError),
    ],
)
def test_an_error_is_also_the_standard_error_it_refines(error: type[Exception], standard: type[Exception]) -> None:
    assert issubclass(error, standard)
    assert issubclass(error, AssayError)


def test_the_two_axes_do_not_mix() -> None:
    assert issubclass(Timeout, TransportError)
    assert not issubclass(ServerError, TransportError)
    assert not issubclass(InvalidAnswer, ServerError | TransportError)


# --- One class for each code


def answer(code: str, status: int, headers: dict[str, str] | None = None) -> RawAnswer:
    error = {"code": code, "message": "no.", "param": "items[1]", "request_id": "r", "retryable": True}
    return RawAnswer(status, headers or {}, json.dumps({"error": error}).encode())


def test_every_code_of_the_service_has_a_class_of_its_own() -> None:
    assert BY_CODE.keys() == schemas.STATUS.keys()
    assert len(set(BY_CODE.values())) == len(BY_CODE)
    assert set(BY_CODE.values()) == set(ServerError.__subclasses__())
    for code, kind in BY_CODE.items():
        # `DeadlineExceeded` is the deadline of the client's own call.
        name = "Expired" if code == "deadline_exceeded" else "".join(word.capitalize() for word in code.split("_"))
        assert kind.__name__ == name
        error = build_server_error(answer(code, schemas.STATUS[code]))
        assert type(error) is kind
        assert (error.code, error.param, error.retryable) == (code, "items[1]", True)


def test_the_page_lists_every_class_with_its_code_and_status() -> None:
    page = (Path(__file__).parents[2] / "docs/client.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\d*) ?\|$", page, flags=re.M)
    statuses = {kind: str(status) for status, kind in BY_STATUS.items()}
    assert rows == [(kind.__name__, code, statuses.get(kind, "")) for code, kind in BY_CODE.items()]


def test_every_code_that_the_service_raises_is_in_its_table() -> None:
    kinds = [kind for kind in vars(service_errors).values() if isinstance(kind, type)]
    serving = [kind.code for kind in kinds if issubclass(kind, service_errors.ServingError)]
    assert set(serving) - {"serving"} <= BY_CODE.keys()  # "serving" is the base class's, which is never raised


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (answer("rate_limited", 429), Overloaded),  # a code of a newer service
        (answer("too_long", 422), InvalidRequest),  # an item's code, where the answer has no place for items
        (answer("not_found", 404), ServerError),
        (RawAnswer(401, {}, b""), Unauthorized),
        (RawAnswer(403, {}, b"<html>"), PermissionDenied),
        (RawAnswer(404, {}, b"<html>"), ServerError),  # no sign that a model is missing
        (RawAnswer(413, {}, b"<html>"), BodyTooLarge),
        (RawAnswer(429, {}, b"slow down"), Overloaded),
        (RawAnswer(500, {}, b"<html>"), ServerError),
        (RawAnswer(503, {}, b"<html>"), NotReady),
    ],
)
def test_other_codes_and_foreign_pages_go_by_their_status(reply: RawAnswer, kind: type[ServerError]) -> None:
    assert type(build_server_error(reply)) is kind


@pytest.mark.parametrize(
    ("headers", "after_s"), [({"retry-after": "2"}, 2.0), ({}, None), ({"retry-after": "x"}, None)]
)
def test_a_refusal_says_when_to_come_back(headers: dict[str, str], after_s: float | None) -> None:
    assert build_server_error(answer("overloaded", 429, headers)).retry_after_s == after_s
    assert build_server_error(RawAnswer(503, headers, b"")).retry_after_s == after_s


def test_an_item_that_failed_names_the_request_that_had_it(
    either: "Either", loopback: "Callable[[Script], Loopback]", wire: "type[Wire]", reply: "type[Answer]"
) -> None:
    server = loopback(lambda asked, number: reply(wire.honest(asked.path, asked.body)))
    result = either.score([("p", "1"), ("p", "bad")], url=server.url, chunk_size=1)
    with pytest.raises(ItemsFailed) as raised:
        result.scores()
    (asked,) = (asked for asked in server.asked if asked.body["items"][0]["completion"] == "bad")
    (failure,) = raised.value.failures
    assert failure.request_id == result.data[1].request_id == asked.request_id
    assert str(raised.value).endswith(f"special_token: holds <s> (request {asked.request_id})")
    for method, words in (("rank", ("p", ["1", "bad"])), ("render", ([("p", "bad")],))):
        result = either.call(method, *words, options={"url": server.url})
        failed = result.errors[0] if method == "rank" else result.data[0]
        assert failed.request_id == server.asked[-1].request_id
