"""The connections of a client: of one process, or of the event loops of one process."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import TypeAlias

import httpx

Loops: TypeAlias = dict[asyncio.AbstractEventLoop, tuple[httpx.AsyncClient, AsyncGenerator[None, None]]]


@dataclass(frozen=True)
class Process:
    """What a client has in one process: its connections, and for every call an event that stops it."""

    http: httpx.Client
    running: set[threading.Event] = field(default_factory=set)


async def close_at_end(http: httpx.AsyncClient) -> AsyncGenerator[None, None]:
    """Close `http` when this generator is closed; `asyncio.run` closes the generators that its loop still has."""
    try:
        yield
    finally:
        await http.aclose()
