"""Define every error of the client.

    AssayError                      request_id
    ├── InvalidInput                an argument or an item is malformed; nothing was sent     (ValueError)
    ├── TransportError              no complete answer came back
    │   ├── ConnectError            no connection, or it broke before the answer was whole  (ConnectionError)
    │   ├── Timeout                 one try took longer than `timeout_s`                     (TimeoutError)
    │   └── DeadlineExceeded        the whole call took longer than `deadline_s`             (TimeoutError)
    ├── ServerError                 the server refused the request: status, code, param, retryable
    ├── InvalidAnswer               status 200, but the body breaks the wire format          (ValueError)
    ├── FingerprintChanged          parts of one call were scored by different models        (RuntimeError)
    ├── ItemFailed                  one item could not be scored: index, id, code, param, retryable
    ├── ItemsFailed                 some items have no score: failures                       (RuntimeError)
    └── GenerationFailed            a server of `best_of_n` gave no completions: status      (RuntimeError)

`TransportError` and `ServerError` are raised after the retries, so catching them needs no loop. No failure is
ever turned into a number. All of them can be pickled, so they cross process pools.
"""

from typing import Any, TypeVar

_Error = TypeVar("_Error", bound="AssayError")


def _rebuild(kind: type[_Error], args: tuple[object, ...], state: dict[str, Any]) -> _Error:
    """Return an unpickled error; `__init__` is bypassed, because its signature differs from class to class."""
    error = kind.__new__(kind)
    error.args = args  # OSError.__new__ drops them
    error.__dict__.update(state)
    return error


class AssayError(Exception):
    """Base class of all errors that the client raises on purpose.

    Attributes:
        request_id: the `X-Request-ID` of the request that failed, to find it in the server's log.
    """

    request_id: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class InvalidInput(AssayError, ValueError):
    """An error about an item, a row of a file or an argument that is malformed. Nothing was sent."""


class TransportError(AssayError):
    """Base class of errors on the way to the server and back: no complete answer arrived."""


class ConnectError(TransportError, ConnectionError):
    """An error that no connection could be made, or that it broke before the answer was complete."""


class Timeout(TransportError, TimeoutError):
    """An error that one try took longer than `timeout_s`."""


class DeadlineExceeded(TransportError, TimeoutError):
    """An error that the whole call, with its retries and chunks, took longer than `deadline_s`."""


class ServerError(AssayError):
    """An answer of the server with a status other than 200.

    Attributes:
        status: the HTTP status.
        code: the server's stable code; "http_<status>" if the body is not Assay's, for example a proxy's error page.
        param: the path of the offending field ("items[3].prompt"), or None.
        retryable: True if the server says that the request may succeed later; None if the body does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        param: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retryable = retryable

    def __str__(self) -> str:
        where = f" at {self.param}" if self.param else ""
        return f"{self.status} {self.code}{where}: {self.args[0]}"


class InvalidAnswer(AssayError, ValueError):
    """An answer with status 200 that breaks the wire format.

    For example malformed JSON, a score that is missing or not finite, or a wrong number of rows. It is never retried.
    """


class FingerprintChanged(AssayError, RuntimeError):
    """An error that two parts of one call carry different fingerprints, so that their scores are not comparable.

    It happens when a deployment is replaced during the call. Score all items again.

    Attributes:
        first: the fingerprint of the earlier part.
        second: the fingerprint that differs.
    """

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"the model changed during the call: fingerprint {first} became {second}")
        self.first = first
        self.second = second


class ItemFailed(AssayError):
    """An error that one item could not be scored.

    Attributes:
        index: the position of the item in the call, from 0.
        id: the caller's name of the item, or None.
        code: the server's stable code.
        param: the path of the offending field inside the item, or None.
        retryable: True if the same item may succeed later.
    """

    def __init__(
        self, message: str, *, index: int, id: str | None, code: str, param: str | None, retryable: bool
    ) -> None:
        super().__init__(message)
        self.index = index
        self.id = id
        self.code = code
        self.param = param
        self.retryable = retryable

    def __str__(self) -> str:
        name = f" ({self.id})" if self.id is not None else ""
        return f"item {self.index}{name}: {self.code}: {self.args[0]}"


class ItemsFailed(AssayError, RuntimeError):
    """An error that a list of scores was requested and some items have no score.

    Attributes:
        failures: one `ItemFailed` per failed item, sorted by index; never empty.
        total: the number of items in the call.
    """

    def __init__(self, failures: tuple[ItemFailed, ...], total: int) -> None:
        super().__init__(f"{len(failures)} of {total} items failed; the first: {failures[0]}")
        self.failures = failures
        self.total = total


class GenerationFailed(AssayError, RuntimeError):
    """An error that the server that `best_of_n` generates with refused a request, or gave an answer of another form.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status

    def __str__(self) -> str:
        return f"{self.status}: {self.args[0]}"
