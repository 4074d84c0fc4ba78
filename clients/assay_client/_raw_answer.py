"""Read an HTTP answer that is not a success: its error, and the time that it asks for. No sockets, no clock."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from assay_client._endpoints import REDIRECTS
from assay_client._redaction import NOTHING, Redaction
from assay_client.errors import BY_CODE, BY_STATUS, ServerError

OK = 200
EXCERPT_CHARS = 120  # the longest part of a foreign body that an error message shows


@dataclass(frozen=True)
class RawAnswer:
    """A complete HTTP answer; `headers` are looked up in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def read_retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that `Retry-After` asks for, or None if it is missing or unreadable.

    A date is measured against the answer's own `Date`, not against this machine's clock, which may be wrong.
    """
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - parsedate_to_datetime(headers["date"])).total_seconds()
        except (ValueError, TypeError, KeyError):
            return None
    # `float` reads "nan" and "inf" too, and a date may be in the past.
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def build_server_error(answer: RawAnswer, redaction: Redaction = NOTHING) -> ServerError:
    """Return the error of an answer whose status is not 200; an excerpt of the body if it is not Assay's error."""
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        body = None
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(body, dict) and "error" not in body:
        error = {"code": body.get("code"), "message": body.get("detail")}  # the form of `/compat/openrlhf`
    after_s = read_retry_after_s(answer.headers)
    # Proxies answer with pages of their own, so that nothing about the body of an error is taken for granted.
    if not isinstance(error, dict) or not isinstance(error.get("code"), str):
        text = redaction.redact(answer.body.decode(errors="replace"))[:EXCERPT_CHARS].strip()
        if answer.status in REDIRECTS:  # not followed: another host would get the key, or a POST become a GET
            place = redaction.redact(answer.headers.get("location", "an address that it does not name"))[:EXCERPT_CHARS]
            text = f"the address redirects to {place}; give the address of the service itself"
        kind = BY_STATUS.get(answer.status, ServerError)
        return kind(text or "no body", status=answer.status, code=f"http_{answer.status}", retry_after_s=after_s)
    code, param, retryable = error["code"], error.get("param"), error.get("retryable")
    kind = BY_CODE.get(code) or BY_STATUS.get(answer.status, ServerError)
    return kind(
        redaction.redact(str(error.get("message"))),
        status=answer.status,
        code=redaction.redact(code),
        param=redaction.redact(param) if isinstance(param, str) else None,
        retryable=retryable if isinstance(retryable, bool) else None,
        retry_after_s=after_s,
    )
