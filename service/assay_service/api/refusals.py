"""Turn every exception of a request into a refusal: a status, a stable code, and a sentence without input text.

The native endpoints and each compatible wire print a refusal in their own form.
"""

import logging
import re
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from assay_service.api import schemas
from assay_service.api.body import NOT_FINITE, TWICE
from assay_service.api.guard import BodyTooLarge
from assay_service.errors import AssayError, ContentError, OperationRunning, Overloaded, PermissionDenied, Unauthorized
from assay_service.validation import explain, format_key

_STATUS = {**schemas.STATUS, **schemas.ADMIN_STATUS}
_NOT_JSON = "the body is not valid JSON"
# Codes and messages of requests that reach no handler, by status.
_HTTP = {
    404: (
        "not_found",
        "there is no such path: /docs lists all, and paths of other servers begin with /compat/NAME unless "
        "`compat.root: NAME` mounts them at the root",
    ),
    405: ("method_not_allowed", "this path has another method: /docs lists all"),
}
_PLAIN = re.compile(r"^[A-Za-z0-9._-]{1,64}$")

_log = logging.getLogger("assay")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a request has no answer.

    Attributes:
        status: HTTP status.
        code: stable machine-readable name.
        message: one sentence for people, without any text of the request.
        param: path of the field that is wrong; None where no single field is.
        retryable: True if the same request may succeed later.
        retry_after_s: seconds after which to try again; None where the service cannot say.
        challenge: value of `WWW-Authenticate`; None unless a key is missing, wrong or insufficient.
        allow: value of `Allow`, the methods of the path; None unless the request has another one.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retryable: bool = False
    retry_after_s: float | None = None
    challenge: str | None = None
    allow: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of the answer that say what a client can do."""
        headers = {} if self.challenge is None else {"WWW-Authenticate": self.challenge}
        if self.allow is not None:
            headers["Allow"] = self.allow
        if self.retry_after_s is not None:
            headers["Retry-After"] = f"{self.retry_after_s:.0f}"
        return headers

    @property
    def sentence(self) -> str:
        """Return the message behind the path of the wrong field, for wires whose errors are one text."""
        return self.message if self.param is None else f"{self.param}: {self.message}"


def refuse(request: Request, error: Exception) -> Refusal:
    """Return the refusal of an exception that a request raised, and log the exceptions that no code expected.

    Args:
        request: the request, whose headers and limits decide some messages.
        error: any exception.
    """
    if isinstance(error, RequestValidationError):
        return _refuse_invalid(request, error)
    if isinstance(error, AssayError):
        # A content error has a status only where the answer has no place for errors of single items.
        status = schemas.CONTENT_STATUS if isinstance(error, ContentError) else _STATUS[error.code]
        after_s = error.retry_after_s if isinstance(error, Overloaded | OperationRunning) else None
        challenge = error.challenge if isinstance(error, Unauthorized | PermissionDenied) else None
        return Refusal(status, error.code, error.message, error.param, error.retryable, after_s, challenge)
    if isinstance(error, BodyTooLarge):
        most = request.app.state.settings.limits.max_body_bytes
        message = f"the body has more than {most} bytes (max_body_bytes); split the request into several"
        return Refusal(schemas.STATUS["body_too_large"], "body_too_large", message)
    if isinstance(error, HTTPException):
        if error.status_code == 400:  # FastAPI's status for bodies that are not UTF-8, too deep, or hold huge numbers
            return Refusal(schemas.STATUS["invalid_request"], "invalid_request", _NOT_JSON)
        code, message = _HTTP.get(error.status_code, ("http", str(error.detail)))
        return Refusal(error.status_code, code, message, allow=(error.headers or {}).get("Allow"))
    # Details go to the log, never to the client.
    _log.error("a request failed", exc_info=error, extra={"fields": {"request_id": request.state.request_id}})
    return Refusal(
        schemas.STATUS["internal"], "internal", "internal error; the service's log has the details", retryable=True
    )


def _refuse_invalid(request: Request, error: RequestValidationError) -> Refusal:
    """Return the refusal of a body that breaks the schema: the first wrong field and the rule."""
    first = error.errors()[0]  # an error body has only one `param`
    message = explain(first)
    if first["type"] == "json_invalid":
        message = first["ctx"]["error"] if first["ctx"]["error"] in (TWICE, NOT_FINITE) else _NOT_JSON
        first = {**first, "loc": ("body",)}  # the second part would be a place in the text, and no item's index
    if first["loc"] == ("body",) and not _has_json_type(request):
        message = "the body was not read as JSON: send the header `content-type: application/json`"
    return Refusal(schemas.STATUS["invalid_request"], "invalid_request", message, _format_param(first["loc"]))


def _format_param(loc: tuple[Any, ...]) -> str | None:
    """Format a pydantic location as a path: ("body", "items", 3, "prompt") is items[3].prompt.

    The path has neither union tags nor names with unusual characters, which would echo the input.
    """
    return format_key(loc[1:], lambda part: part not in schemas.UNION_TAGS and bool(_PLAIN.match(part))) or None


def _has_json_type(request: Request) -> bool:
    """Return True if the request's `content-type` is JSON; curl's `-d` alone sends the type of a form."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))
