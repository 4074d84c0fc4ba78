"""Serve the page at `/`, on which people try the signals of the service in a browser."""

import os
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

FILES = Path(__file__).parents[1] / "playground"

# The page loads nothing from elsewhere, runs no inline code, and cannot be framed.
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # the next version of the service has another page under the same addresses
}


class _StaticPage(StaticFiles):
    """The files of the page, with headers that limit what a browser does with them."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return the answer with a file, or that it has not changed."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(_HEADERS)
        return response


def mount_playground(app: FastAPI) -> None:
    """Serve the page at `/`, and its scripts under `/playground`."""

    async def index() -> FileResponse:
        return FileResponse(FILES / "index.html", headers=_HEADERS)

    app.add_api_route("/", index, methods=["GET"], include_in_schema=False)
    app.mount("/playground", _StaticPage(directory=FILES))
