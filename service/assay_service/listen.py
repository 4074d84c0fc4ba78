"""Take the port before any model is loaded, and answer on it until the service does.

A second service on the same port therefore fails at once. Probes of Kubernetes and clients that connect meanwhile get
the answer that the models are loading. This module does not import torch.
"""

import errno
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from assay_service.errors import StartError
from assay_service.request_id import HEADER, choose_request_id

_BACKLOG = 2048  # uvicorn's own default, since uvicorn takes this socket over
_MAX_BODY_BYTES = 16 * 2**20  # the default of limits.max_body_bytes; a longer body is not read to its end
_RETRY_AFTER_S = 5


def listen(host: str, port: int, *, is_protected: bool) -> socket.socket:
    """Return a socket that listens on `host` and `port`; with port 0 the system picks a free port.

    Args:
        host: name or address to listen on.
        port: port to listen on.
        is_protected: False for a service without keys, which only this machine may reach.

    Raises:
        StartError: the port is taken or not allowed, this machine has no such address, or the service needs keys there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartError(
            f"--host {host}: no such address ({error.strerror}); use 127.0.0.1 for this machine only, or 0.0.0.0 "
            "for all its addresses"
        ) from error
    if not is_protected and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise StartError(
            f"--host {host}: other machines can reach this address, and the service has no API keys; make a key by "
            "`assay keys add NAME --scope score` and give `--keys keys.yaml`, or use --insecure if the network is "
            "protected otherwise"
        )
    taken = socket.socket(family, kind, protocol)
    try:
        # Without it the port stays blocked for a minute after a service that had open connections ends.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(_BACKLOG)
    except OSError as error:
        taken.close()
        raise StartError(_explain_failure(error, host, port)) from error
    return taken


def build_url(listening: socket.socket, host: str, tls: ssl.SSLContext | None = None) -> str:
    """Return the URL of a listening socket, with the host as the user wrote it."""
    scheme, port = "http" if tls is None else "https", listening.getsockname()[1]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


@contextmanager
def answer_not_ready(listening: socket.socket, tls: ssl.SSLContext | None = None) -> Iterator[None]:
    """Answer on a listening socket while the models load, by HTTPS with `tls`, and leave it open for the service.

    `GET /health` gives 200, since the process works; everything else gives 503 `not_ready` with `Retry-After`.
    """
    server = _Server(listening.getsockname()[:2], _NotReady, bind_and_activate=False)
    server.tls = tls
    server.socket.close()  # the constructor opens a socket of its own
    server.socket = listening
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="assay-not-ready", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def _explain_failure(error: OSError, host: str, port: int) -> str:
    """Say why the service cannot listen on an address, and what to do."""
    match error.errno:
        case errno.EADDRINUSE:
            return f"address already in use: is another service running on {host}:{port}? Stop it, or use --port"
        case errno.EADDRNOTAVAIL:
            return (
                f"--host {host}: not an address of this machine; use 127.0.0.1 for this machine only, or 0.0.0.0 for "
                "all its addresses"
            )
        case errno.EACCES | errno.EPERM:
            return f"--port {port}: not allowed for this user; use a port from 1024 on"
    return f"cannot listen on {host}:{port}: {error.strerror}; use another --host or --port"


class _Server(ThreadingHTTPServer):
    """The temporary server; with `tls`, each connection is one of TLS."""

    tls: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as in the base class
        """Serve one connection, in a thread of its own, so that a slow handshake delays nobody else."""
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(_NotReady.timeout)
        # A client that does not speak TLS, or does not trust the certificate, gets no answer.
        with suppress(OSError), self.tls.wrap_socket(request, server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)


class _NotReady(BaseHTTPRequestHandler):
    """Handler of every request while the models load; each connection serves one request."""

    timeout = 10  # seconds until a client that sends less than it announced is given up
    server_version = "assay"
    sys_version = ""

    def _answer(self) -> None:
        self._read_body()
        request_id = choose_request_id(self.headers.get(HEADER))
        is_health = self.command in ("GET", "HEAD") and self.path.partition("?")[0] == "/health"
        body: dict[str, Any] = {"status": "ok"}
        if not is_health:
            message = "the service is loading its models; try again in a few seconds"
            error = {"code": "not_ready", "message": message, "param": None}
            body = {"error": {**error, "request_id": request_id, "retryable": True}}
        payload = json.dumps(body).encode()
        self.send_response(200 if is_health else 503)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.send_header(HEADER, request_id)
        if not is_health:
            self.send_header("retry-after", str(_RETRY_AFTER_S))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    do_GET = do_POST = do_HEAD = do_PUT = do_DELETE = do_OPTIONS = _answer

    def _read_body(self) -> None:
        """Read the client's body: if unread bytes are left at the close, the client loses the answer."""
        length = self.headers.get("content-length", "0")
        left = min(int(length), _MAX_BODY_BYTES) if length.isdecimal() else 0
        while left > 0 and (part := self.rfile.read(min(left, 65536))):
            left -= len(part)

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing, because these requests were not served."""
