"""Every error of the service.

    AssayError                     code, message, param, retryable
    ├── StartError                 the service must not start: configuration or checkpoint
    ├── ContentError               one item cannot be scored; its neighbours can
    └── ServingError               the whole request cannot be answered now

`Problems` collects what is wrong with a configuration, so that all of it is reported at once.

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
        param: path of the offending field, or None.
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
        problems: one line each: the key, file or tensor, what is wrong with it, and what to do.
        source: the file or directory that all of them are about; None where each line says it.
    """

    code = "start"

    def __init__(self, *problems: str, source: str | None = None) -> None:
        start = "" if source is None else f"{source}: "
        lines = problems if len(problems) == 1 else [f"{len(problems)} problems", *(f"  {line}" for line in problems)]
        super().__init__(start + "\n".join(lines))
        self.problems = problems


class Problems:
    """Collects what is wrong with a configuration, so that one report names all of it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def collected(self, where: str = "") -> Iterator[None]:
        """Keep the problems of a `StartError`, each behind `where`, and go on after the block."""
        try:
            yield
        except StartError as error:
            self.lines += [f"{where}: {line}" if where else line for line in error.problems]

    def raise_any(self, source: str | None = None) -> None:
        """Raise all problems as one `StartError`, if there are any."""
        if self.lines:
            raise StartError(*self.lines, source=source)


class ContentError(AssayError, ValueError):
    """One item cannot be scored. Codes are listed in docs/scoring.md."""

    code = "content"


class ServingError(AssayError, RuntimeError):
    """The service cannot answer this request."""

    code = "serving"


class UnknownModel(ServingError):
    """The request names a signal or blend that is not served."""

    code = "model_not_found"


class Overloaded(ServingError):
    """The queue is full. Nothing was started; try again after `retry_after_s` seconds."""

    code = "overloaded"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(ServingError):
    """The service is starting, draining, or its last forward failed."""

    code = "not_ready"
    retryable = True


class ClientGone(ServingError):
    """The client closed its connection before the answer; what had not been computed was dropped."""

    code = "client_gone"


class ForwardFailed(ServingError):
    """A forward raised; another try may meet a healthier device."""

    code = "forward_failed"
    retryable = True


class NotFinite(ServingError):
    """A logit or score is NaN or infinite. It never leaves as a number, and would be the same again."""

    code = "not_finite"
