"""Define every error of the client.

    AssayError                      request_id
    ├── InvalidInput                an argument or an item is malformed; nothing was sent     (ValueError)
    ├── TransportError              no complete answer came back
    │   ├── ConnectError            no connection, or it broke before the answer was whole  (ConnectionError)
    │   ├── Timeout                 one try took longer than `timeout_s`                     (TimeoutError)
    │   └── DeadlineExceeded        the whole call took longer than `deadline_s`             (TimeoutError)
    ├── ServerError                 the server refused the request: status, code, param, retryable, retry_after_s
    │   └── one class for each code, listed in `BY_CODE`
    ├── InvalidAnswer               status 200, but the body breaks the wire format          (ValueError)
    ├── FingerprintChanged          parts of one call were scored by different models        (RuntimeError)
    ├── ItemFailed                  one item could not be scored: index, id, code, param, retryable
    ├── ItemsFailed                 some items have no score: failures                       (RuntimeError)
    └── GenerationFailed            a server of `best_of_n` gave no completions: status      (RuntimeError)

`TransportError` and `ServerError` are raised after the retries, so catching them needs no loop. No failure is
ever turned into a number. All of them can be pickled, so they cross process pools.
"""

from collections.abc import Mapping
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
        request_id: the `X-Request-ID` of the request that failed, to find it in the server's log; None if nothing was
            sent. The text of the error ends with it.
    """

    request_id: str | None = None

    def __str__(self) -> str:
        return self._describe() + (f" (request {self.request_id})" if self.request_id else "")

    def _describe(self) -> str:
        """Return the error's text without the request's id."""
        return Exception.__str__(self)  # not super(): an OSError among the bases would format its own arguments

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
    """An answer of the server with a status other than 200; each code of the server has a subclass.

    Attributes:
        status: the HTTP status.
        code: the server's stable code; "http_<status>" if the body is not Assay's, for example a proxy's error page.
        param: the path of the offending field ("items[3].prompt"), or None.
        retryable: True if the server says that the request may succeed later; None if the body does not say.
        retry_after_s: the seconds after which the server asks to be tried again (`Retry-After`), or None.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        param: str | None = None,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retryable = retryable
        self.retry_after_s = retry_after_s

    def _describe(self) -> str:
        where = f" at {self.param}" if self.param else ""
        return f"{self.status} {self.code}{where}: {self.args[0]}"


class InvalidRequest(ServerError):
    """A refusal of the request itself: `param` names the field that is wrong.

    A status of 422 with another code is one too, for example a text of `compare` that has no score.
    """


class Unauthorized(ServerError):
    """A refusal because the API key is missing or wrong (401)."""


class PermissionDenied(ServerError):
    """A refusal because the API key does not permit this request (403)."""


class ModelNotFound(ServerError):
    """A refusal because no signal or blend has the name that was given."""


class BodyTooLarge(ServerError):
    """A refusal because the body has too many bytes: use a smaller `chunk_size`."""


class TooManyItems(ServerError):
    """A refusal because the request has too many items: use a smaller `chunk_size`."""


class TooManyTokens(ServerError):
    """A refusal because the request has too many tokens: use a smaller `chunk_size`."""


class Overloaded(ServerError):
    """A refusal because the queue is full or a rate limit is reached; nothing was computed."""


class Expired(ServerError):
    """A refusal because the answer would come later than `timeout_s`, or a failure because it did.

    `retryable` is False if the request is too large for that time: use a smaller `chunk_size` or a longer `timeout_s`.
    """


class NotReady(ServerError):
    """A refusal because the service is starting or stopping, or a proxy has none that is ready."""


class ForwardFailed(ServerError):
    """A failure of the model's forward pass."""


class NotFinite(ServerError):
    """A failure because the model's output was NaN or infinite; another try would give it again."""


class Internal(ServerError):
    """A failure of the service that no other code describes; its log has the details."""


class ClientGone(ServerError):
    """An answer to a connection that was closed meanwhile; a proxy on the way gave up earlier than this client."""


# The codes of the service, and of API keys. Codes have one class each, so that an `except` need not compare texts.
BY_CODE: Mapping[str, type[ServerError]] = {
    "invalid_request": InvalidRequest,
    "unauthorized": Unauthorized,
    "permission_denied": PermissionDenied,
    "model_not_found": ModelNotFound,
    "body_too_large": BodyTooLarge,
    "too_many_items": TooManyItems,
    "too_many_tokens": TooManyTokens,
    "overloaded": Overloaded,
    "deadline_exceeded": Expired,
    "not_ready": NotReady,
    "forward_failed": ForwardFailed,
    "not_finite": NotFinite,
    "internal": Internal,
    "client_gone": ClientGone,
}
# For codes of a newer service, and for pages of proxies and gateways, as far as a status has one meaning.
BY_STATUS: Mapping[int, type[ServerError]] = {
    401: Unauthorized,
    403: PermissionDenied,
    413: BodyTooLarge,
    422: InvalidRequest,
    429: Overloaded,
    499: ClientGone,
    503: NotReady,
}


class InvalidAnswer(AssayError, ValueError):
    """An answer with status 200 that breaks the wire format.

    For example malformed JSON, a score that is missing or not finite, or a wrong number of rows. The request then
    goes to another endpoint. The error is raised if none is left.
    """


class FingerprintChanged(AssayError, RuntimeError):
    """An error that two parts of one call carry different fingerprints, so that their scores are not comparable.

    It happens when a deployment is replaced during the call; then score all items again. It also happens when the
    endpoints of a client serve different models.

    Attributes:
        first: the fingerprint of the earlier part.
        second: the fingerprint that differs.
        endpoints: the addresses that the two parts came from; None where a file holds the earlier part.
    """

    def __init__(self, first: str, second: str, endpoints: tuple[str, str] | None = None) -> None:
        message = f"the model changed during the call: fingerprint {first} became {second}"
        if endpoints is not None and endpoints[0] != endpoints[1]:
            places = f"{endpoints[0]} has fingerprint {first}, {endpoints[1]} has {second}"
            message = f"two endpoints serve different models: {places}"
        super().__init__(message)
        self.first = first
        self.second = second
        self.endpoints = endpoints


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
        self,
        message: str,
        *,
        index: int,
        id: str | None,
        code: str,
        param: str | None,
        retryable: bool,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.index = index
        self.id = id
        self.code = code
        self.param = param
        self.retryable = retryable

    def _describe(self) -> str:
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
        request_id: the `X-Request-ID` of the answer; None if that server sends none.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status

    def _describe(self) -> str:
        return f"{self.status}: {self.args[0]}"
