"""Hold the connections of a client: those of one process, or of each event loop in it."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import TypeAlias

import httpx

# By loop, because a connection belongs to the loop that opened it.
Loops: TypeAlias = dict[asyncio.AbstractEventLoop, tuple[httpx.AsyncClient, AsyncGenerator[None, None]]]


@dataclass(frozen=True)
class Process:
    """The state of a client in one process.

    Attributes:
        http: the httpx client with the connections.
        running: the events that stop the calls that run now, one each.
    """

    http: httpx.Client
    running: set[threading.Event] = field(default_factory=set)


async def close_at_end(http: httpx.AsyncClient) -> AsyncGenerator[None, None]:
    """Close `http` when this generator is closed; `asyncio.run` closes the generators that its loop still has."""
    try:
        yield
    finally:
        await http.aclose()
