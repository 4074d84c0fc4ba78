"""Load the models of a service and serve them, until a signal ends the process or its device fails."""

import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from socket import socket
from ssl import SSLContext
from typing import TYPE_CHECKING

from assay_service.cli_errors import print_start_errors
from assay_service.listen import answer_not_ready, build_url
from assay_service.logs import START, log_step
from assay_service.scoring.unpacked import remove_temporary
from assay_service.settings import Settings

if TYPE_CHECKING:
    from assay_service.resolve import ResolvedSignal

# Exit code of a service whose drain ended with unfinished requests; 1 is that of a failed device.
UNFINISHED = 3


def run(
    settings: Settings,
    signals: "Mapping[str, ResolvedSignal]",
    listening: socket,
    host: str,
    tls: SSLContext | None,
) -> int:
    """Load the models and serve them until a signal ends the process, and return its exit code.

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
    with _end_at_sigterm(), answer_not_ready(listening, tls), print_start_errors("serve"):
        log.info("listening on %s; the answer is 503 until the models are loaded", url)
        with log_step("importing torch and transformers"):
            from assay_service.api.app import create_app  # noqa: PLC0415
            from assay_service.memory import keep_freed_memory  # noqa: PLC0415
            from assay_service.server import DrainingServer  # noqa: PLC0415
        keep_freed_memory()
        # Only the engine's worker calls on_failure. It starts with the server, so `application` exists by then.
        application = create_app(
            settings, resolved=signals, on_failure=lambda: application.state.drain.begin("the device has failed")
        )
    server = DrainingServer(
        application, tls, lambda: log.info("ready in %.1f s: %s", time.monotonic() - started_s, url)
    )
    # Everything loaded so far stays for the life of the process, so later collections need not walk through it.
    gc.collect()
    gc.freeze()
    server.run(sockets=[listening])
    engine = application.state.scorer.engine
    # uvicorn returns normally also if it could not start.
    code = 1 if engine.failed or not server.started else UNFINISHED if server.unfinished else 0
    if engine.progress.is_computing or application.state.administration.is_loading:
        # A thread that comes back from torch while the interpreter ends would abort the process.
        log.error("a forward pass or the loading of a signal still runs; the process ends without it")
        logging.shutdown()
        os._exit(code)
    return code


@contextlib.contextmanager
def _end_at_sigterm() -> Iterator[None]:
    """End the process with exit code 0 at SIGTERM while the models load; nobody waits for an answer then."""

    def end(*_: object) -> None:
        # An exception could be lost: where Python runs the handler, an import or a callback may catch everything.
        remove_temporary()
        os._exit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
