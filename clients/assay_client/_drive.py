"""Drive many requests at once: decide how large each is, keep their order, and give up on a silent service."""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

from assay_client.errors import Timeout

AHEAD = 2  # times the concurrency: other requests continue while the oldest is slow
TARGET_S = 4.0  # for a request: short enough to show progress and to lose little, long beside its overhead
FIRST_CHARS = 4000.0  # for the first requests, before any speed is known; about a thousand tokens
MOST_CHARS = 1e6  # for any request; the service accepts bodies of 16 MiB
GROWTH = 2.0  # the largest factor, up or down, from one request to the next
LOOKS = 4  # how often the service is checked within the seconds that it may be silent


class HasChars(Protocol):
    """A value that has a length in characters."""

    @property
    def chars(self) -> int: ...


ExtentT = TypeVar("ExtentT", bound=HasChars)
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass
class Pace:
    """The size of the next request, which is learned from the time of earlier ones.

    Attributes:
        most_rows: the most rows of one request.
        chars: the approximate number of characters of the next request; a single row is sent whatever its length.
    """

    most_rows: int
    chars: float = FIRST_CHARS

    def take(self, rows: Iterator[ExtentT]) -> list[ExtentT] | None:
        """Take the rows of the next request; None at the end."""
        part: list[ExtentT] = []
        chars = 0
        for row in rows:
            part.append(row)
            chars += row.chars
            if len(part) >= self.most_rows or chars >= self.chars:
                break
        return part or None

    def learn(self, chars: int, seconds: float) -> None:
        """Learn that a request with `chars` characters took `seconds`, including its time in the queue."""
        # Bounded below, so that an answer from a cache does not divide by zero.
        fits = chars * TARGET_S / max(seconds, 1e-3)
        self.chars = min(max(fits, self.chars / GROWTH, 1.0), self.chars * GROWTH, MOST_CHARS)

    async def measure(self, part: list[ExtentT], answer: Awaitable[Made]) -> Made:
        """Return the answer to a request with these rows, and learn from the time that it takes."""
        begun_s = asyncio.get_running_loop().time()
        made = await answer
        self.learn(sum(row.chars for row in part), asyncio.get_running_loop().time() - begun_s)
        return made


async def drive_rows(  # noqa: PLR0913  # what differs between scoring and comparing a file, all by name
    rows: Generator[ExtentT, None, None],
    *,
    start: int,
    most_rows: int,
    ask: Callable[[list[ExtentT]], Awaitable[Made]],
    put: Callable[[list[ExtentT], Made], None],
    alive: Callable[[], Awaitable[bool]],
    width: int,
    silence_s: float,
) -> None:
    """Ask about rows, in requests whose size follows the speed of the service; close `rows` at the end.

    Args:
        rows: the rows, which are read when they are needed.
        start: the number of rows at the beginning that are not asked about.
        most_rows: the most rows of one request.
        ask: a function that returns the answer to the rows of one request.
        put: a function that is called with the rows of each request and its answer, in order.
        alive: a function that returns whether the service shows any sign of life.
        width: the most requests in flight at once.
        silence_s: the seconds without an answer or a sign of life after which the service is given up.

    Raises:
        Timeout: the service was silent for `silence_s`.
    """
    # Skipped rows are read again, because only reading finds where a row begins.
    pace, rest = Pace(most_rows), islice(rows, start, None)
    try:
        await run_in_order(
            take=lambda: pace.take(rest),
            ask=lambda part: pace.measure(part, ask(part)),
            put=put,
            alive=alive,
            width=width,
            silence_s=silence_s,
        )
    finally:
        with suppress(ValueError):  # the generator cannot be closed while a thread waits for rows in it
            rows.close()


async def run_in_order(
    *,
    take: Callable[[], Given | None],
    ask: Callable[[Given], Awaitable[Made]],
    put: Callable[[Given, Made], None],
    alive: Callable[[], Awaitable[bool]],
    width: int,
    silence_s: float,
) -> None:
    """Ask the questions that `take` returns, `width` at once, and put each answer in the order of the questions.

    It ends early when a question fails or when it is cancelled, without waiting for questions in flight. All answers
    before the first gap have been put by then.

    Args:
        take: a function that returns the next question, or None at the end; it may block, and runs in a thread.
        ask: a function that returns the answer to a question.
        put: a function that is called with each question and its answer.
        alive: a function that returns whether the service shows any sign of life.
        width: the most questions in flight at once; at most `AHEAD * width` questions and answers are held.
        silence_s: the seconds without an answer or a sign of life after which the service is given up.

    Raises:
        Timeout: the service was silent for `silence_s`.
    """
    window: deque[tuple[Given, asyncio.Task[Made]]] = deque()
    now_s, silent_s, more = asyncio.get_running_loop().time, 0.0, True
    try:
        while more or window:
            # Not asked again after the end: a pipe would be read beyond it.
            more = more and await _fill(window, take, ask, width)
            begun_s = now_s()
            if await _wait_for_answer(window, silence_s / LOOKS) or await alive():
                silent_s = 0.0
            else:
                silent_s += now_s() - begun_s  # measured, because the sign of life itself may take long
            if silent_s >= silence_s:
                raise Timeout(f"no sign of life from the service for {silence_s:g} s")
            _put_answered(window, put)
    finally:
        # Gathered, so that no task outlives the call and no error is reported as never retrieved.
        for _, task in window:
            task.cancel()
        await asyncio.gather(*(task for _, task in window), return_exceptions=True)


async def _fill(
    window: deque[tuple[Given, asyncio.Task[Made]]],
    take: Callable[[], Given | None],
    ask: Callable[[Given], Awaitable[Made]],
    width: int,
) -> bool:
    """Ask until `width` questions are in flight or enough answers wait; return False after the last question."""
    while len(window) < AHEAD * width and len(_list_busy(window)) < width:
        given = await run_off_loop(take)
        if given is None:
            return False
        window.append((given, asyncio.ensure_future(_await_answer(ask, given))))
    return True


async def _wait_for_answer(window: deque[tuple[Given, asyncio.Task[Made]]], within_s: float) -> bool:
    """Wait some seconds and return whether a question was answered or failed; True at once if none is in flight."""
    busy = _list_busy(window)  # may be empty, which `asyncio.wait` refuses
    return not busy or bool((await asyncio.wait(busy, timeout=within_s, return_when=asyncio.FIRST_COMPLETED))[0])


def _put_answered(window: deque[tuple[Given, asyncio.Task[Made]]], put: Callable[[Given, Made], None]) -> None:
    """Put the answers before the first gap; raise the error of a later question, which need not wait for its turn."""
    while window and window[0][1].done():
        given, task = window.popleft()
        put(given, task.result())
    for _, task in window:
        if task.done():
            task.result()


async def _await_answer(ask: Callable[[Given], Awaitable[Made]], given: Given) -> Made:
    return await ask(given)


def _list_busy(window: deque[tuple[Given, asyncio.Task[Made]]]) -> list[asyncio.Task[Made]]:
    return [task for _, task in window if not task.done()]


async def run_off_loop(work: Callable[[], Made]) -> Made:
    """Run `work` in a thread and return its result; at exit nobody waits for it, so that a silent pipe cannot block."""
    future: Future[Made] = Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:  # raised where the future is awaited
                future.set_exception(error)

    threading.Thread(target=run, name="assay-rows", daemon=True).start()
    return await asyncio.wrap_future(future)
