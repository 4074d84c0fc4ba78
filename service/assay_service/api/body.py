"""Read the body of a request as JSON in which no object has a key twice, and every number is finite."""

import json
import math
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

TWICE = "an object in the body has a key twice, and one of its values would be lost"
NOT_FINITE = "a number in the body is not finite, or too large for a float of 64 bits"

# A function that begins to answer a body which it reads by itself; None leaves the body to the endpoint.
PlainAnswer = Callable[[Request, bytes], Coroutine[Any, Any, Response] | None]
EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])
_plain_answers: dict[Callable[..., Any], PlainAnswer] = {}


def answer_plain(answer: PlainAnswer) -> Callable[[EndpointT], EndpointT]:
    """Decorate an endpoint, whose plain bodies another function answers without pydantic and FastAPI."""

    def register(endpoint: EndpointT) -> EndpointT:
        _plain_answers[endpoint] = answer
        return endpoint

    return register


class StrictJsonRoute(APIRoute):
    """A route that refuses a body in which a key occurs twice, or a number is not finite.

    Python's JSON reader would silently keep the last of the two values, and it reads `NaN` and `1e999`, which no answer
    could repeat.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of `APIRoute`, which reads the body by `_StrictJson`, behind that of plain bodies."""
        handle = super().get_route_handler()
        answer = _plain_answers.get(self.endpoint)

        async def handle_strict(request: Request) -> Response:
            strict = _StrictJson(request.scope, request.receive)
            if answer is not None and _has_plain_type(strict):
                with suppress(ClientDisconnect):  # which FastAPI meets again
                    if (begun := answer(strict, await strict.body())) is not None:
                        return await begun
            return await handle(strict)

        return handle_strict


class _StrictJson(Request):
    """A request whose `json` refuses repeated keys and numbers that are not finite."""

    async def json(self) -> Any:  # noqa: ANN401 - as in the base class
        """Return the body; FastAPI answers a JSONDecodeError with 422.

        Raises:
            json.JSONDecodeError: the body is not JSON, an object in it has a key twice, or a number is not finite.
        """
        return read_strict_json(await self.body())


def read_strict_json(body: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value of a JSON text.

    Raises:
        json.JSONDecodeError: the body is not JSON, an object in it has a key twice, or a number is not finite.
        UnicodeDecodeError, RecursionError, ValueError: it is not Unicode, too deep, or has a number of many digits.
    """
    return json.loads(body, object_pairs_hook=_build_object, parse_constant=_read_float, parse_float=_read_float)


def _has_plain_type(request: Request) -> bool:
    """Return whether the body is certainly read as JSON; FastAPI decides about other names of its type."""
    return request.headers.get("content-type", "").partition(";")[0] == "application/json"


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        # FastAPI answers this exception with 422, and any other one with 400.
        raise json.JSONDecodeError(TWICE, "", 0)
    return keys


def _read_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise json.JSONDecodeError(NOT_FINITE, "", 0)
    return number
