"""Errors cross process borders whole, and are what their names say."""

import copy
import pickle

import pytest

from assay_client.errors import (
    AssayError,
    ConnectError,
    DeadlineExceeded,
    FingerprintChanged,
    InvalidAnswer,
    InvalidInput,
    ItemFailed,
    ItemsFailed,
    Overloaded,
    ServerError,
    Timeout,
    TransportError,
)

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
