"""Run an application by uvicorn so that SIGTERM first drains it: connections stay open until requests are answered."""

import asyncio
import logging
import signal
from collections.abc import Callable
from socket import socket
from ssl import SSLContext
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from assay_service.api.drain import Drain
from assay_service.api.key_store import KeyStore
from assay_service.logs import START
from assay_service.patience import PatientProtocol
from assay_service.scoring.unpacked import remove_temporary

# Time after the drain for answers that are being sent; a client that does not read cannot delay the end any longer.
SEND_S = 5

_REASON = "the service is shutting down"

_log = logging.getLogger(START)


class DrainingServer(uvicorn.Server):
    """A server that listens and answers while its application drains, and ends after that.

    Args:
        application: the application, whose drain is `state.drain`.
        tls: the context of HTTPS; None for HTTP.
        on_ready: callback, called when requests are accepted.

    Attributes:
        unfinished: number of requests that were refused because they were not finished in time.
    """

    def __init__(self, application: FastAPI, tls: SSLContext | None, on_ready: Callable[[], None]) -> None:
        # log_config=None keeps the handlers that `logs.configure` set. There are no WebSockets, which would pass the
        # guard. h11 bounds the head of a request; httptools, which uvicorn takes where it is installed, does not.
        options: dict[str, Any] = {"log_config": None, "access_log": False, "ws": "none", "http": PatientProtocol}
        options |= {"server_header": False, "timeout_graceful_shutdown": SEND_S}
        if tls is not None:
            options["ssl_context_factory"] = lambda *_: tls
        super().__init__(uvicorn.Config(application, **options))
        self.unfinished = 0
        self._drain: Drain = application.state.drain
        self._keys: KeyStore | None = application.state.keys
        self._on_ready = on_ready
        self._is_announced = False
        self._is_urgent = False

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Accept requests."""
        await super().startup(sockets)
        if self._keys is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._keys.reload)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain at the first signal, and end it at the second.

        uvicorn would raise the signal once more at its end, and the exit code would say that it killed the process.
        """
        if self._drain.reason is not None:
            self._is_urgent = True
        self._drain.begin(_REASON)

    async def on_tick(self, counter: int) -> bool:
        """Return True when the service ends: nothing is in flight any more, or the time is over."""
        if self._drain.reason is not None and not self._is_announced:
            self._is_announced = True
            _log.info(
                "%s: %d requests in flight have %g s to finish, new ones are refused",
                *(self._drain.reason, self._drain.in_flight, self._drain.drain_s),
            )
        return await super().on_tick(counter) or self._drain.is_over or self._is_urgent

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Refuse what is not finished, close all connections and end the application."""
        self._drain.begin(_REASON)  # for an end without a signal
        self.unfinished = self._drain.expire()
        if self.unfinished:
            _log.error("%d requests were not finished in time and are answered with 503", self.unfinished)
        await super().shutdown(sockets)
        remove_temporary()
