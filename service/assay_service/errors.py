"""Define every error of the service.

    AssayError                     code, message, param, retryable
    ├── StartError                 the service must not start: configuration or checkpoint
    ├── ContentError               one item cannot be scored; its neighbors can
    ├── ServingError               the whole request cannot be answered now
    └── OperationRefused           the signals of the running service are not changed

`Problems` collects the errors of a configuration, so that all of them are reported at once.

A `code` is stable and part of the wire. `param` names the offending field ("items[3].prompt") where there is one.
The table from codes to HTTP statuses is in `api/schemas.py`; nothing below `api` knows a status.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class AssayError(Exception):
    """Base of all errors that Assay raises on purpose.

    Attributes:
        code: stable machine-readable name.
        message: one sentence for people; never holds a prompt or a completion.
        param: path of the offending field, or None where no single field is wrong.
        retryable: True if the same request may succeed later.
    """

    code = "internal"
    retryable = False

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param


class StartError(AssayError, ValueError):
    """The configuration or a checkpoint is wrong.

    Args:
        problems: one line for each problem, with the key, file or tensor, the fault, and the remedy.
        source: the file or directory that all lines are about; None where each line names its own.
    """

    code = "start"

    def __init__(self, *problems: str, source: str | None = None) -> None:
        start = "" if source is None else f"{source}: "
        # One problem stays on the line of its source; several are indented below it.
        lines = problems if len(problems) == 1 else [f"{len(problems)} problems", *(f"  {line}" for line in problems)]
        super().__init__(start + "\n".join(lines))
        self.problems = problems


class Problems:
    """A list of the problems of a configuration, so that one report names all of them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def collected(self, where: str = "") -> Iterator[None]:
        """Add the problems of a `StartError`, each with the prefix `where`, and continue after the block."""
        try:
            yield
        except StartError as error:
            self.lines += [f"{where}: {line}" if where else line for line in error.problems]

    def raise_any(self, source: str | None = None) -> None:
        """Raise all collected problems as one error, if there are any.

        Raises:
            StartError: at least one problem was collected.
        """
        if self.lines:
            raise StartError(*self.lines, source=source)


class ContentError(AssayError, ValueError):
    """One item cannot be scored. Codes are listed in docs/scoring.md."""

    code = "content"


class ServingError(AssayError, RuntimeError):
    """The service cannot answer this request."""

    code = "serving"


class Unauthorized(ServingError):
    """The request has no valid API key.

    Args:
        message: one sentence for people.
        is_sent: whether the request has a key, which is not valid.

    Attributes:
        challenge: value of `WWW-Authenticate`, as RFC 6750 has it.
    """

    code = "unauthorized"

    def __init__(self, message: str, *, is_sent: bool) -> None:
        super().__init__(message)
        self.challenge = 'Bearer realm="assay", error="invalid_token"' if is_sent else 'Bearer realm="assay"'


class PermissionDenied(ServingError):
    """The API key does not have the scope of the path.

    Args:
        message: one sentence for people.
        scope: the scope that is missing.

    Attributes:
        challenge: value of `WWW-Authenticate`, as RFC 6750 has it.
    """

    code = "permission_denied"

    def __init__(self, message: str, *, scope: str) -> None:
        super().__init__(message)
        self.challenge = f'Bearer realm="assay", error="insufficient_scope", scope="{scope}"'


class UnknownModel(ServingError):
    """The request names a signal or blend that is not served."""

    code = "model_not_found"


class Overloaded(ServingError):
    """The queue is full; nothing was computed, and the client can try again after `retry_after_s` seconds.

    Attributes:
        reason: the limit that was reached: "wait", "tokens", "items" or "deadline".
    """

    code = "overloaded"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float, reason: str = "wait") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.reason = reason


class DeadlineExceeded(ServingError):
    """The client's time is over before the answer, or will be; what still waited was dropped.

    Attributes:
        reason: "deadline" if the request was refused on arrival, "expired" if its time ended while it waited.
        retryable: False if the request is too large for its time, whatever else is waiting.
    """

    code = "deadline_exceeded"

    def __init__(self, message: str, *, reason: str, retryable: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable


class NotReady(ServingError):
    """The service is starting or shutting down, or its last forward pass failed."""

    code = "not_ready"
    retryable = True


class OperationRefused(AssayError, RuntimeError):
    """The signals of the running service are not changed. Codes are listed in docs/operate.md."""

    code = "signal_refused"


class OperationRunning(OperationRefused):
    """Another request changes the signals of the service now; the client can try again after `retry_after_s`."""

    code = "operation_running"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ClientGone(ServingError):
    """The client closed its connection before the answer; sequences that still waited were cancelled."""

    code = "client_gone"


class ForwardFailed(ServingError):
    """A forward pass raised an exception; another try may meet a healthier device."""

    code = "forward_failed"
    retryable = True


class NotFinite(ServingError):
    """A logit or score is NaN or infinite; it is never sent as a number, and another try would give it again."""

    code = "not_finite"
