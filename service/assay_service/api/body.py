"""Read the body of a request as JSON in which no object has a key twice."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

TWICE = "an object in the body has a key twice, and one of its values would be lost"


class UniqueKeysRoute(APIRoute):
    """A route that refuses a body in which a key occurs twice.

    Python's JSON reader would silently keep the last of the two values.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of `APIRoute`, which reads the body by `_UniqueKeys`."""
        handle = super().get_route_handler()

        async def handle_unique(request: Request) -> Response:
            return await handle(_UniqueKeys(request.scope, request.receive))

        return handle_unique


class _UniqueKeys(Request):
    """A request whose `json` refuses repeated keys."""

    async def json(self) -> Any:  # noqa: ANN401 - as in the base class
        """Return the body; FastAPI answers a JSONDecodeError with 422.

        Raises:
            json.JSONDecodeError: the body is not JSON, or an object in it has a key twice.
        """
        return json.loads(await self.body(), object_pairs_hook=_build_object)


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        # FastAPI answers this exception with 422, and any other one with 400.
        raise json.JSONDecodeError(TWICE, "", 0)
    return keys
