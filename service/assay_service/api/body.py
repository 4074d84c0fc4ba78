"""Read the body of a request as JSON in which no object has a key twice, and every number is finite."""

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

TWICE = "an object in the body has a key twice, and one of its values would be lost"
NOT_FINITE = "a number in the body is not finite, or too large for a float of 64 bits"


class StrictJsonRoute(APIRoute):
    """A route that refuses a body in which a key occurs twice, or a number is not finite.

    Python's JSON reader would silently keep the last of the two values, and it reads `NaN` and `1e999`, which no answer
    could repeat.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of `APIRoute`, which reads the body by `_StrictJson`."""
        handle = super().get_route_handler()

        async def handle_strict(request: Request) -> Response:
            return await handle(_StrictJson(request.scope, request.receive))

        return handle_strict


class _StrictJson(Request):
    """A request whose `json` refuses repeated keys and numbers that are not finite."""

    async def json(self) -> Any:  # noqa: ANN401 - as in the base class
        """Return the body; FastAPI answers a JSONDecodeError with 422.

        Raises:
            json.JSONDecodeError: the body is not JSON, an object in it has a key twice, or a number is not finite.
        """
        return json.loads(
            await self.body(), object_pairs_hook=_build_object, parse_constant=_read_float, parse_float=_read_float
        )


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
