"""Close connections whose request does not arrive completely in time, so that slow clients cannot take all sockets.

uvicorn itself waits without end for the rest of a head or of a body.
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Time for the head and the body of a request together; the largest body (16 MiB by default) needs 2.3 Mbit/s.
RECEIVE_S = 60.0


class PatientProtocol(H11Protocol):
    """A connection that is closed when a request on it is not complete `RECEIVE_S` after it began."""

    _giving_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request, which may not come at all."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Leave an idle connection to uvicorn's own limit; a next request may have begun already."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is not None:
            self._stop()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait."""
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        """Start the clock while a part of a request is missing, and stop it when the request is complete."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop()
        elif self._giving_up is None:
            self._giving_up = self.loop.call_later(RECEIVE_S, self.transport.close)

    def _stop(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
