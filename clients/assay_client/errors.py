"""Every error of the client.

    AssayError                      request_id
    ├── InvalidInput                what the caller gave is malformed; nothing was sent      (ValueError)
    ├── TransportError              the request never worked: no complete answer came back
    │   ├── ConnectError            no connection, or it broke before the answer was whole  (ConnectionError)
    │   ├── Timeout                 one try took longer than `timeout_s`                     (TimeoutError)
    │   └── DeadlineExceeded        the whole call took longer than `deadline_s`             (TimeoutError)
    ├── ServerError                 the server said no: status, code, param, retryable
    ├── InvalidAnswer               the server said yes, but not what the wire promises      (ValueError)
    ├── FingerprintChanged          parts of one call were scored by different models        (RuntimeError)
    ├── ItemFailed                  one item could not be scored: index, id, code, param, retryable
    └── ItemsFailed                 some items of a call could not: failures                 (RuntimeError)

`TransportError` and `ServerError` are raised after the retries, so catching them needs no loop. No failure is
ever turned into a number. All of them can be pickled, so they cross process pools.
"""

from typing import Any, TypeVar

_Error = TypeVar("_Error", bound="AssayError")


def _rebuild(kind: type[_Error], args: tuple[object, ...], state: dict[str, Any]) -> _Error:
    """An unpickled error; bypasses `__init__`, whose signatures differ."""
    error = kind.__new__(kind)
    error.args = args  # OSError.__new__ drops them
    error.__dict__.update(state)
    return error


class AssayError(Exception):
    """Base of all errors that the client raises on purpose.

    Attributes:
        request_id: the `X-Request-ID` of the request that failed, to find it in the server's log.
    """

    request_id: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class InvalidInput(AssayError, ValueError):
    """An item, a row of a file or an argument is malformed. Nothing was sent."""


class TransportError(AssayError):
    """The request never worked: no complete answer came back."""


class ConnectError(TransportError, ConnectionError):
    """No connection could be made, or it broke before the answer was whole."""


class Timeout(TransportError, TimeoutError):
    """One try took longer than `timeout_s`."""


class DeadlineExceeded(TransportError, TimeoutError):
    """The whole call, with its retries and chunks, took longer than `deadline_s`."""


class ServerError(AssayError):
    """The server answered with a status other than 200.

    Attributes:
        status: HTTP status.
        code: the server's stable code; "http_<status>" where somebody between (a proxy) answered.
        param: path of the offending field ("items[3].prompt"), or None.
        retryable: what the server said about trying again; None where the body does not say.
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
    """An answer with status 200 that breaks the wire.

    Malformed JSON, a score missing or not finite, a wrong number of rows, an index twice. Never retried.
    """


class FingerprintChanged(AssayError, RuntimeError):
    """Two parts of one call carry different fingerprints, so their scores may not be compared.

    Happens when a deployment is replaced during the call. Scoring everything again is the mend.

    Attributes:
        first: fingerprint of the earlier part.
        second: the one that differs.
    """

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"the model changed during the call: fingerprint {first} became {second}")
        self.first = first
        self.second = second


class ItemFailed(AssayError):
    """One item could not be scored.

    Attributes:
        index: position of the item in the call, from 0.
        id: the caller's name of the item, or None.
        code: the server's stable code.
        param: path of the offending field inside the item, or None.
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
    """A list of scores was asked for, and some items have none.

    Attributes:
        failures: one `ItemFailed` per failed item, by index; never empty.
        total: items in the call.
    """

    def __init__(self, failures: tuple[ItemFailed, ...], total: int) -> None:
        super().__init__(f"{len(failures)} of {total} items failed; the first: {failures[0]}")
        self.failures = failures
        self.total = total
