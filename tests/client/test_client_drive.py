"""How large requests become, in which order answers are put, and when a service is given up."""

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay_client._drive import MOST_CHARS, Pace, run_in_order
from assay_client.errors import Timeout


@dataclass(frozen=True)
class Text:
    chars: int


def sizes(pace: Pace, *chars: int) -> list[int]:
    rows = iter([Text(one) for one in chars])
    return [len(part) for part in iter(lambda: pace.take(rows), None)]


def test_a_request_is_as_long_as_its_pace_or_one_row() -> None:
    assert sizes(Pace(64, 1000.0), *[300] * 9) == [4, 4, 1]
    assert sizes(Pace(3, 1000.0), *[300] * 9) == [3, 3, 3]
    assert sizes(Pace(64, 1000.0), 5000, 5000, 10, 10) == [1, 1, 2]
    assert sizes(Pace(1, 1000.0), 1, 1) == [1, 1]
    assert sizes(Pace(64)) == []


@pytest.mark.parametrize(
    ("chars", "seconds", "then"),
    [
        (1000, 4.0, 1000.0),  # as long as it should be
        (1000, 3.2, 1250.0),
        (1000, 0.001, 2000.0),  # never more than twice as much at once
        (1000, 5.0, 800.0),
        (1000, 100.0, 500.0),  # nor less than half
        (0, 1.0, 500.0),
        (250, 1.0, 1000.0),  # a short request that took its share of the time
    ],
)
def test_the_next_request_fits_four_seconds_at_the_measured_speed(chars: int, seconds: float, then: float) -> None:
    pace = Pace(64, 1000.0)
    pace.learn(chars, seconds)
    assert pace.chars == pytest.approx(then)


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 1e5))))
def test_a_pace_stays_within_bounds(learned: list[tuple[int, float]]) -> None:
    pace = Pace(64)
    for chars, seconds in learned:
        pace.learn(chars, seconds)
        assert 1.0 <= pace.chars <= MOST_CHARS


async def drive(count: int, ask: Any, put: Any, *, width: int = 3, silence_s: float = 5.0, alive: bool = True) -> None:
    numbers: Iterator[int] = iter(range(count))

    async def lives() -> bool:
        return alive

    await run_in_order(
        take=lambda: next(numbers, None), ask=ask, put=put, alive=lives, width=width, silence_s=silence_s
    )


def test_answers_are_put_in_order_and_no_more_than_the_width_are_asked_at_once() -> None:
    put: list[tuple[int, int]] = []
    busy = most = 0

    async def ask(number: int) -> int:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.03 if number % 3 == 0 else 0.001)
        busy -= 1
        return number * 10

    asyncio.run(drive(20, ask, lambda *pair: put.append(pair)))
    assert put == [(n, 10 * n) for n in range(20)]
    assert most == 3


def test_a_failure_ends_everything_at_once_and_what_came_before_it_is_put() -> None:
    put: list[int] = []
    cancelled: list[int] = []

    async def ask(number: int) -> int:
        if number == 4:
            await asyncio.sleep(0.02)
            raise ZeroDivisionError
        if number == 3:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(number)
                raise
        return number

    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(drive(20, ask, lambda number, answer: put.append(number)))
    assert time.monotonic() - begun < 10
    assert put == [0, 1, 2]
    assert cancelled == [3]


def test_work_has_no_limit_while_the_service_lives_and_silence_has() -> None:
    async def ask(number: int) -> int:
        await asyncio.sleep(0.5)
        return number

    put: list[int] = []
    asyncio.run(drive(2, ask, lambda number, answer: put.append(number), silence_s=0.1))
    assert put == [0, 1]
    begun = time.monotonic()
    with pytest.raises(Timeout, match=r"no sign of life from the service for 0\.1 s"):
        asyncio.run(drive(2, ask, lambda *pair: None, silence_s=0.1, alive=False))
    assert 0.1 <= time.monotonic() - begun < 5


def test_rows_that_do_not_come_hold_up_neither_answers_in_flight_nor_the_end() -> None:
    """As a pipe into which nobody writes."""
    came = threading.Event()

    async def inner() -> None:
        async def ask(number: int) -> int:
            came.set()
            return number

        def take() -> int | None:
            if came.is_set():
                time.sleep(60)
            return 1

        async def lives() -> bool:
            return True

        going = asyncio.create_task(
            run_in_order(take=take, ask=ask, put=lambda *pair: None, alive=lives, width=2, silence_s=5)
        )
        while not came.is_set():
            await asyncio.sleep(0.01)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going

    begun = time.monotonic()
    asyncio.run(inner())
    assert time.monotonic() - begun < 10
