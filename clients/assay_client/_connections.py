"""Hold the connections of a client: those of one process, or of each event loop in it."""

import asyncio
import os
import ssl
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TypeAlias

import httpx

from assay_client.errors import InvalidInput


@dataclass(frozen=True)
class Process:
    """The state of a client in one process.

    Attributes:
        http: the httpx client with the connections.
        slots: the requests that may still begin; all calls of the client share them.
        running: the events that stop the calls that run now, one each.
    """

    http: httpx.Client
    slots: threading.Semaphore
    running: set[threading.Event] = field(default_factory=set)


@dataclass(frozen=True)
class Loop:
    """The state of a client in one event loop.

    Attributes:
        http: the httpx client with the connections.
        slots: the requests that may still begin; all calls of the client in this loop share them.
        closing: the generator that closes `http` when it is closed.
    """

    http: httpx.AsyncClient
    slots: asyncio.Semaphore
    closing: AsyncGenerator[None, None]


# By loop, because a connection belongs to the loop that opened it.
Loops: TypeAlias = dict[asyncio.AbstractEventLoop, Loop]


@cache
def get_tls(ca_file: str | None = None) -> ssl.SSLContext:
    """Return the certificates that this process trusts: those of a file, or else the usual ones.

    They are kept, because reading them takes 60 ms, as much as scoring a few items.

    Raises:
        InvalidInput: the file cannot be read, or has no certificate in PEM format.
    """
    if ca_file is None:
        return httpx.create_ssl_context()
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # SSLError is one
        reason = "it has no certificate in PEM format" if isinstance(error, ssl.SSLError) else error.strerror
        raise InvalidInput(f"`ca_file`: {ca_file} cannot be used: {reason}") from error


@contextmanager
def hold_slot(slots: threading.Semaphore, within_s: float) -> Iterator[None]:
    """Hold a slot; if none is free in time the block runs without one, and finds that its time is over."""
    held = slots.acquire(timeout=min(max(within_s, 0.0), threading.TIMEOUT_MAX))
    try:
        yield
    finally:
        if held:
            slots.release()


@asynccontextmanager
async def hold_slot_async(slots: asyncio.Semaphore, within_s: float) -> AsyncIterator[None]:
    """Hold a slot, as `hold_slot` does."""
    held = False
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            held = await slots.acquire()
    try:
        yield
    finally:
        if held:
            slots.release()


async def close_at_end(http: httpx.AsyncClient) -> AsyncGenerator[None, None]:
    """Close `http` when this generator is closed; `asyncio.run` closes the generators that its loop still has."""
    try:
        yield
    finally:
        await http.aclose()


def close_own(by_pid: dict[int, Process]) -> None:
    """Close the connections of this process, for a client that nobody has closed; those of others stay."""
    known = by_pid.get(os.getpid())
    if known is not None:
        known.http.close()
