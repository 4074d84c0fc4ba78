"""Describe the errors of a wire for OpenAPI, by building one of each kind; so the description cannot differ."""

from collections.abc import Callable, Iterable
from typing import Any

from assay_service.api import schemas
from assay_service.api.refusals import Refusal

# Codes of refusals that tell a client to come back; only these get the configured overload status.
OVERLOAD = frozenset({"overloaded", "not_ready"})
OVERLOAD_STATUSES = (429, 503)

# Returns the HTTP status and the JSON body of an error, from the refusal and the id of the request.
ErrorBuilder = Callable[[Refusal, str], tuple[int, Any]]


def describe_errors(builders: Iterable[ErrorBuilder], messages: Iterable[str]) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a wire's routes: for each status, the JSON Schema of the bodies with that status.

    Args:
        builders: functions that build the errors of the wire.
        messages: messages of refusals that have a status of their own.
    """
    forms: dict[int, list[dict[str, Any]]] = {}
    for build in builders:
        for refusal in _yield_refusals(messages):
            status, body = build(refusal, "")
            known, form = forms.setdefault(status, []), _describe(body)
            if form not in known:
                known.append(form)
    schema = {status: known[0] if len(known) == 1 else {"anyOf": known} for status, known in sorted(forms.items())}
    return {status: {"content": {"application/json": {"schema": form}}} for status, form in schema.items()}


def _yield_refusals(messages: Iterable[str]) -> Iterable[Refusal]:
    """Yield a refusal of every code, with and without the name of a field."""
    for param in (None, "field"):
        for code, status in schemas.STATUS.items():
            for each in OVERLOAD_STATUSES if code in OVERLOAD else (status,):
                yield Refusal(each, code, "message", param)
        yield Refusal(schemas.CONTENT_STATUS, "content", "message", param)
        for message in messages:
            yield Refusal(schemas.STATUS["invalid_request"], "invalid_request", message, param)


def _describe(value: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    """Return the JSON Schema of a value by its types; its texts and numbers are examples."""
    match value:
        case dict():
            properties = {name: _describe(part) for name, part in value.items()}
            return {"type": "object", "properties": properties, "required": list(properties)}
        case list():
            return {"type": "array"}
        case bool():
            return {"type": "boolean"}
        case int() | float():
            return {"type": "number"}
        case None:
            return {"type": "null"}
    return {"type": "string"}
