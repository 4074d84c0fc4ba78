"""Serve the page at `/`, on which people try the signals of the service in a browser."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

FILES = Path(__file__).parents[1] / "playground"

# The page loads nothing from elsewhere, runs no inline code, and cannot be framed.
_HEADERS = {
    b"content-security-policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-cache",  # the next version of the service has another page under the same addresses
}


class _StaticPage(StaticFiles):
    """The files of the page, with headers that limit what a browser does with them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS.items()]
            await send(message)

        await super().__call__(scope, receive, send_with_headers)


def mount_playground(app: FastAPI) -> None:
    """Serve the page at `/`, and its scripts under `/playground`."""

    async def index() -> FileResponse:
        headers = {name.decode(): value.decode() for name, value in _HEADERS.items()}
        return FileResponse(FILES / "index.html", headers=headers)

    app.add_api_route("/", index, methods=["GET"], include_in_schema=False)
    app.mount("/playground", _StaticPage(directory=FILES))
