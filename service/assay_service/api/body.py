"""Read the body of a request as JSON in which no object has a key twice."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

TWICE = "an object in the body has a key twice, and one of its values would be lost"


class UniqueKeysRoute(APIRoute):
    """A route whose body Python's own reader does not read, because that keeps the last of two values silently."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As APIRoute's, with another reader of the body."""
        handle = super().get_route_handler()

        async def handle_unique(request: Request) -> Response:
            return await handle(_UniqueKeys(request.scope, request.receive))

        return handle_unique


class _UniqueKeys(Request):
    async def json(self) -> Any:  # noqa: ANN401 - as in the base class
        """Return the body; FastAPI answers a JSONDecodeError with 422.

        Raises:
            json.JSONDecodeError: it is no JSON, or an object in it has a key twice.
        """
        return json.loads(await self.body(), object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise json.JSONDecodeError(TWICE, "", 0)
    return found
