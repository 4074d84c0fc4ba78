"""A TCP proxy that breaks connections on purpose; a seed decides which one and how, so that a run can be repeated."""

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

FAULTS = ("none", "delay", "reset", "reset_answer", "truncate_answer", "truncate_request", "half_close", "swallow")
DELAY_S = 0.3
KEPT_BYTES = 40  # what is let through before a cut: a part of the status line and headers


@dataclass
class Proxy:
    """A proxy in front of one port.

    Attributes:
        port: port that it listens on.
        faults: faults that are drawn, each as often as it occurs here; empty lets everything pass.
        met: how many connections had each fault.
    """

    target: int
    faults: Sequence[str]
    draw: random.Random
    port: int = 0
    met: Counter[str] = field(default_factory=Counter)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        """Carry one connection, with the fault that is drawn for it."""
        fault = self.draw.choice(self.faults) if self.faults else "none"
        self.met[fault] += 1
        with closing(answer), suppress(OSError, asyncio.IncompleteReadError):
            if fault == "reset":
                await client.readexactly(1)
                return reset(answer)
            server, request = await asyncio.open_connection("127.0.0.1", self.target)
            with closing(request):
                cut = asyncio.ensure_future(self.carry(client, request, fault if "request" in fault else "none"))
                try:
                    if fault == "half_close":  # the client's side ends before the answer, and the answer still comes
                        request.write(await client.read(65536))
                        cut.cancel()
                        request.write_eof()
                    await self.carry(server, answer, fault)
                finally:
                    cut.cancel()
        return None

    async def carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, fault: str) -> None:
        """Copy one direction until its end or its fault."""
        while part := await source.read(65536):
            if fault == "delay":
                await asyncio.sleep(DELAY_S)
            if fault == "swallow":
                continue  # the connection stays open, and nothing comes
            whole = fault in ("none", "delay", "half_close", "reset")
            sink.write(part if whole else part[:KEPT_BYTES])
            await sink.drain()
            if not whole:
                return reset(sink) if fault == "reset_answer" else sink.close()
        with suppress(OSError):
            sink.write_eof()
        return None


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST in place of FIN."""
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def run_proxy(target: int, faults: Sequence[str], seed: int = 0) -> Iterator[Proxy]:
    """Serve a proxy in front of a local port, in a thread of its own."""
    proxy, loop = Proxy(target, faults, random.Random(seed)), asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(proxy.handle, "127.0.0.1", 0))
    proxy.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(server.close)
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
