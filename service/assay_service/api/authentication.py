"""Admit only requests with a valid API key, before anything of their body is read.

Everything needs a key, except for the few paths in `OPEN`; so a new route is closed until somebody opens it here.
"""

import base64
import binascii
from collections.abc import Iterable
from typing import Final

from starlette.requests import Request
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from assay_service.api.guard import Answer
from assay_service.api.key_store import KeyStore
from assay_service.errors import AssayError, PermissionDenied, Unauthorized
from assay_service.keys import Key
from assay_service.keys import Scope as KeyScope

# The probes of orchestrators, which send no key, and the page. Its files are the same in every installation. A browser
# cannot send a key when it opens an address, so the page asks for the key, and sends it with its own requests.
OPEN: Final = frozenset({"/health", "/ready", "/", "/playground"})
_METRICS: Final = "/metrics"
_ADMIN: Final = "/admin"


class Authentication:
    """Middleware that refuses requests without a valid key, and those that the key's scopes do not allow.

    The name of a valid key is `request.state.caller`.

    Args:
        app: the application behind it.
        keys: the keys of the service.
        answer: function that answers a refused request.
    """

    def __init__(self, app: ASGIApp, keys: KeyStore, answer: Answer) -> None:
        self._app, self._keys, self._answer = app, keys, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if it may, else answer it."""
        if scope["type"] != "http":  # the start and the end of the application; there are no WebSockets
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        route = _find_route(request.app.routes, scope)
        # An error has the form of the wire that the route belongs to.
        if (wire := getattr(route, "spoken", None)) is not None:
            request.state.wire = wire
        try:
            self._check(request, getattr(route, "path", None))
        except AssayError as error:
            response = await self._answer(request, error)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, request: Request, path: str | None) -> None:
        """Check the key of a request for the route with this path, and keep the name of the key.

        Raises:
            Unauthorized: the request has no valid key.
            PermissionDenied: the key does not have the scope of the route.
        """
        if path in OPEN:
            return
        sent = read_credential(request.scope["headers"])
        key = None if sent is None else self._keys.find(sent)
        if key is None:
            raise Unauthorized(
                "the API key is not valid" if sent else "an API key is required: send `Authorization: Bearer KEY`",
                is_sent=bool(sent),
            )
        request.state.caller = key.name
        _check_scope(key, path)


def choose_scope(path: str | None) -> KeyScope | None:
    """Return the scope that a route needs; None for a path without a route, which any key may learn."""
    if path is None:
        return None
    if path == _METRICS:
        return "metrics"
    return "admin" if path == _ADMIN or path.startswith(f"{_ADMIN}/") else "score"


def read_credential(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the key of a request; None without one, or with several, which a gateway may read in another way.

    It is the token of `Authorization: Bearer`, or the password of `Authorization: Basic`. Trainers that can send no
    header of their own send the latter for an address with a password, `http://NAME:KEY@HOST`.
    """
    sent = [value for name, value in headers if name == b"authorization"]
    if len(sent) != 1:
        return None
    scheme, _, credential = sent[0].partition(b" ")
    match scheme.lower():
        case b"bearer":
            return credential.strip() or None
        case b"basic":
            try:
                return base64.b64decode(credential.strip(), validate=True).partition(b":")[2] or None
            except binascii.Error:
                return None
    return None


def _check_scope(key: Key, path: str | None) -> None:
    needed = choose_scope(path)
    if needed is not None and needed not in key.scopes:
        raise PermissionDenied(
            f"this path needs a key with the scope {needed}, and this key has {', '.join(key.scopes)}", scope=needed
        )


def _find_route(routes: Iterable[BaseRoute], scope: Scope) -> BaseRoute | None:
    """Return the route that the router will choose: the first whose path and method match, or else whose path does."""
    partial = None
    for route in routes:
        match, _ = route.matches(scope)
        if match is Match.FULL:
            return route
        if match is Match.PARTIAL and partial is None:
            partial = route
    return partial
