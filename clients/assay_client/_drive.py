"""Many requests in flight: how large each is, in which order they end, and when to give up."""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

from assay_client.errors import Timeout

AHEAD = 2  # times the concurrency: work goes on while the oldest request is slow
TARGET_S = 4.0  # that a request should take: progress is seen, little is lost, and a request costs little beside it
FIRST_CHARS = 4000.0  # of the first requests, before any speed is known; a thousand tokens
MOST_CHARS = 1e6  # of any request; the service takes bodies of 16 MiB
GROWTH = 2.0  # at most, from one request to the next
LOOKS = 4  # at the service within the seconds that it may be silent


class HasChars(Protocol):
    """What has a length in characters."""

    @property
    def chars(self) -> int: ...


ExtentT = TypeVar("ExtentT", bound=HasChars)
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass
class Pace:
    """How much to send in one request, from how long earlier ones took.

    Attributes:
        most_rows: in one request.
        chars: that the next request should have, about; one row is sent whatever its length.
    """

    most_rows: int
    chars: float = FIRST_CHARS

    def take(self, rows: Iterator[ExtentT]) -> list[ExtentT] | None:
        """Return the rows of the next request, or None at the end."""
        part: list[ExtentT] = []
        chars = 0
        for row in rows:
            part.append(row)
            chars += row.chars
            if len(part) >= self.most_rows or chars >= self.chars:
                break
        return part or None

    def learn(self, chars: int, seconds: float) -> None:
        """Take into account that a request with `chars` characters took `seconds`, waiting in line included."""
        fits = chars * TARGET_S / max(seconds, 1e-3)
        self.chars = min(max(fits, self.chars / GROWTH, 1.0), self.chars * GROWTH, MOST_CHARS)


async def in_order(
    *,
    take: Callable[[], Given | None],
    ask: Callable[[Given], Awaitable[Made]],
    put: Callable[[Given, Made], None],
    alive: Callable[[], Awaitable[bool]],
    width: int,
    silence_s: float,
) -> None:
    """Ask about what `take` gives, `width` at once, and put each answer in the order of the questions.

    Ends early, and without waiting for questions in flight, when one fails or when it is cancelled. All that was
    answered before the first gap has been put then.

    Args:
        take: the next question, or None at the end; may block, and runs in a thread.
        ask: how a question is answered.
        put: is given each question with its answer.
        alive: whether the service shows any sign of life.
        width: questions that are asked at once; at most `AHEAD * width` are held.
        silence_s: seconds without an answer or a sign of life after which the service is given up.

    Raises:
        Timeout: the service was silent for `silence_s`.
    """
    window: deque[tuple[Given, asyncio.Task[Made]]] = deque()
    now_s, silent_s, more = asyncio.get_running_loop().time, 0.0, True
    try:
        while more or window:
            more = more and await _fill(window, take, ask, width)
            begun_s = now_s()
            if await _answered(window, silence_s / LOOKS) or await alive():
                silent_s = 0.0
            else:
                silent_s += now_s() - begun_s
            if silent_s >= silence_s:
                raise Timeout(f"no sign of life from the service for {silence_s:g} s")
            _put_answered(window, put)
    finally:
        for _, task in window:
            task.cancel()
        await asyncio.gather(*(task for _, task in window), return_exceptions=True)


async def _fill(
    window: deque[tuple[Given, asyncio.Task[Made]]],
    take: Callable[[], Given | None],
    ask: Callable[[Given], Awaitable[Made]],
    width: int,
) -> bool:
    """Ask until `width` questions are in flight or enough answers wait; False at the last question."""
    while len(window) < AHEAD * width and len(_busy(window)) < width:
        given = await off_loop(take)
        if given is None:
            return False
        window.append((given, asyncio.ensure_future(_awaited(ask, given))))
    return True


async def _answered(window: deque[tuple[Given, asyncio.Task[Made]]], within_s: float) -> bool:
    """Whether a question is answered, or fails, within some seconds."""
    busy = _busy(window)
    return not busy or bool((await asyncio.wait(busy, timeout=within_s, return_when=asyncio.FIRST_COMPLETED))[0])


def _put_answered(window: deque[tuple[Given, asyncio.Task[Made]]], put: Callable[[Given, Made], None]) -> None:
    """Put the answers before the first gap; raises what a later one failed with, which need not wait for its turn."""
    while window and window[0][1].done():
        given, task = window.popleft()
        put(given, task.result())
    for _, task in window:
        if task.done():
            task.result()


async def _awaited(ask: Callable[[Given], Awaitable[Made]], given: Given) -> Made:
    return await ask(given)


def _busy(window: deque[tuple[Given, asyncio.Task[Made]]]) -> list[asyncio.Task[Made]]:
    return [task for _, task in window if not task.done()]


async def off_loop(work: Callable[[], Made]) -> Made:
    """What `work` returns, from a thread that nobody waits for: a pipe that is silent cannot hold up the end."""
    future: Future[Made] = Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:  # it is raised where it is awaited
                future.set_exception(error)

    threading.Thread(target=run, name="assay-rows", daemon=True).start()
    return await asyncio.wrap_future(future)
