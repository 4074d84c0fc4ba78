"""Load the models of a service and serve them, until a signal ends the process or its device fails."""

import asyncio
import contextlib
import gc
import logging
import signal
import time
from collections.abc import Callable, Mapping
from socket import socket
from ssl import SSLContext
from typing import TYPE_CHECKING, Any

from assay_service.cli_errors import print_start_errors
from assay_service.listen import answer_not_ready, build_url
from assay_service.logs import START, log_step
from assay_service.settings import Settings

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from assay_service.resolve import ResolvedSignal

# Time after SIGTERM for requests in flight; a client that never finishes its body cannot delay the end any longer.
DRAIN_S = 30


def run(
    settings: Settings,
    signals: "Mapping[str, ResolvedSignal]",
    listening: socket,
    host: str,
    tls: SSLContext | None,
) -> bool:
    """Load the models and serve them; return whether they could be served until a signal ended the process.

    Args:
        settings: the configuration.
        signals: its resolved signals.
        listening: socket that listens already.
        host: name or address of the socket, as the user wrote it.
        tls: the context of HTTPS; None for HTTP.
    """
    url, log = build_url(listening, host, tls), logging.getLogger(START)
    started_s = time.monotonic()
    # The temporary server ends with this block. The socket stays open for uvicorn, so no connection is refused.
    with answer_not_ready(listening, tls), print_start_errors("serve"):
        log.info("listening on %s; the answer is 503 until the models are loaded", url)
        with log_step("importing torch and transformers"):
            import uvicorn  # noqa: F401, PLC0415

            from assay_service.api.app import create_app  # noqa: PLC0415
            from assay_service.memory import keep_freed_memory  # noqa: PLC0415
        keep_freed_memory()
        # Only the engine's worker calls on_failure. It starts with the server, so `server` exists by then.
        application = create_app(settings, resolved=signals, on_failure=lambda: setattr(server, "should_exit", True))
    server = _build_server(application, tls, lambda: log.info("ready in %.1f s: %s", time.monotonic() - started_s, url))
    # Everything loaded so far stays for the life of the process, so later collections need not walk through it.
    gc.collect()
    gc.freeze()
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has shut down, and raises Ctrl-C once more
        server.run(sockets=[listening])
    # uvicorn returns normally also if it could not start.
    return server.started and not application.state.scorer.engine.failed


def _build_server(application: "FastAPI", tls: SSLContext | None, on_ready: Callable[[], None]) -> "uvicorn.Server":
    """Return the server of an application; `on_ready` is called when it accepts requests."""
    import uvicorn  # noqa: PLC0415

    from assay_service.patience import PatientProtocol  # noqa: PLC0415
    from assay_service.scoring.unpacked import remove_temporary  # noqa: PLC0415

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket] | None = None) -> None:
            await super().startup(sockets)
            if application.state.keys is not None:
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, application.state.keys.reload)
            if self.started:
                on_ready()

        async def shutdown(self, sockets: list[socket] | None = None) -> None:
            logging.getLogger(START).info("shutting down: requests in flight have %d s to finish", DRAIN_S)
            await super().shutdown(sockets)
            remove_temporary()  # uvicorn raises the signal again, which ends the process without `atexit`

    # log_config=None keeps the handlers that `logs.configure` set. There are no WebSockets, which would pass the guard.
    # h11 bounds the head of a request; httptools, which uvicorn takes where it is installed, does not.
    options: dict[str, Any] = {"log_config": None, "access_log": False, "ws": "none", "http": PatientProtocol}
    options["server_header"] = False
    if tls is not None:
        options["ssl_context_factory"] = lambda *_: tls
    return Server(uvicorn.Config(application, timeout_graceful_shutdown=DRAIN_S, **options))
