"""When to try again: decisions as literals, and the deadline as a property."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay_client._endpoints import Endpoints
from assay_client._raw_answer import RawAnswer, read_retry_after_s
from assay_client._retry import (
    Done,
    Event,
    Policy,
    Send,
    Sleep,
    compute_retry_delay_s,
    exchange,
)
from assay_client.errors import (
    AssayError,
    ConnectError,
    DeadlineExceeded,
    InvalidAnswer,
    InvalidInput,
    ServerError,
    Timeout,
    TransportError,
)


def refused(status: int, retryable: bool | None = None) -> ServerError:
    return ServerError("no", status=status, code="c", retryable=retryable)


def decide(failure: AssayError, tries: int = 1, asked_s: float | None = None, left_s: float = 100.0) -> float | None:
    """The decision with five retries and draw 0, the shortest wait of its backoff."""
    return compute_retry_delay_s(failure, tries=tries, max_retries=5, asked_s=asked_s, left_s=left_s, draw=0.0)


@pytest.mark.parametrize(
    ("failure", "delay_s"),
    [
        (ConnectError(""), 0.125),
        (Timeout(""), 0.125),
        (refused(408), 0.125),
        (refused(429, True), 0.125),
        (refused(500), 0.125),
        (refused(502), 0.125),
        (refused(503, True), 0.125),
        (refused(504), 0.125),
        (refused(500, False), None),
        (refused(400), None),
        (refused(404), None),
        (refused(409), None),
        (refused(413), None),
        (refused(422, True), None),
        (refused(501), None),
        (InvalidAnswer(""), None),
    ],
)
def test_what_is_tried_again(failure: AssayError, delay_s: float | None) -> None:
    assert decide(failure) == delay_s


def test_waits_double_up_to_eight_seconds() -> None:
    waits = [
        compute_retry_delay_s(Timeout(""), tries=n, max_retries=99, asked_s=None, left_s=100.0, draw=1 - 2**-53)
        for n in (1, 2, 3, 4, 5, 6, 7, 99)
    ]
    assert waits == pytest.approx([0.25, 0.5, 1, 2, 4, 8, 8, 8])


def test_the_last_retry_is_the_last() -> None:
    assert decide(Timeout(""), tries=5) == 2.0
    assert decide(Timeout(""), tries=6) is None


@pytest.mark.parametrize(
    ("asked_s", "delay_s"),
    [(0.0, 0.125), (2.0, 2.0), (59.0, 59.0), (3600.0, 60.0)],
    ids=["0", "2", "59", "capped"],
)
def test_retry_after_is_the_least_that_is_waited(asked_s: float, delay_s: float) -> None:
    assert decide(refused(429), asked_s=asked_s) == delay_s


def test_retry_after_is_spread() -> None:
    spread = compute_retry_delay_s(refused(429), tries=1, max_retries=1, asked_s=4.0, left_s=100.0, draw=0.5)
    assert spread == 4.5


def test_a_wait_that_does_not_fit_is_not_begun() -> None:
    assert decide(refused(429), asked_s=10.0, left_s=10.5) == 10.0
    assert decide(refused(429), asked_s=10.0, left_s=10.0) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Fri, 21 Nov 2026 10:00:07 GMT", "date": "Fri, 21 Nov 2026 10:00:00 GMT"}, 7.0),
        ({"retry-after": "Fri, 21 Nov 2026 09:00:00 GMT", "date": "Fri, 21 Nov 2026 10:00:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 21 Nov 2026 10:00:07 GMT"}, None),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert read_retry_after_s(headers) == seconds


OUTCOMES = st.one_of(
    st.sampled_from([429, 500, 503]).map(lambda status: RawAnswer(status, {"retry-after": "2"}, b"")),
    st.sampled_from([ConnectError("x"), Timeout("x")]),
    st.just(RawAnswer(200, {}, b"ok")),
    st.just(RawAnswer(422, {}, b"")),
)
STEPS = st.tuples(OUTCOMES, st.floats(0, 40), st.floats(0, 1, exclude_max=True))


@given(st.lists(STEPS, min_size=12, max_size=12), st.floats(0.1, 100))
def test_nothing_is_begun_that_would_end_after_the_deadline(
    script: list[tuple[RawAnswer | TransportError, float, float]], deadline_s: float
) -> None:
    now_s, deadline_at_s, sends = 50.0, 50.0 + deadline_s, 0
    policy = Policy(timeout_s=30.0, deadline_s=deadline_s, max_retries=5)
    one = Endpoints(["http://a"])
    steps = exchange(bytes.decode, policy, one, key="k", request_id="r", deadline_at_s=deadline_at_s, now_s=now_s)
    with suppress(AssayError):
        step = next(steps)
        while not isinstance(step, Done):
            outcome, took_s, draw = script[sends]
            if isinstance(step, Sleep):
                now_s += step.delay_s
                assert now_s < deadline_at_s
                step = steps.send(Event(now_s, draw))
                continue
            assert now_s + step.timeout_s <= deadline_at_s + 1e-9
            sends += 1
            now_s += min(took_s, step.timeout_s)
            step = steps.send(Event(now_s, draw, outcome))
        assert step.value == "ok"
    assert 1 <= sends <= 6


def test_a_try_that_the_deadline_cut_short_is_the_deadlines_fault() -> None:
    policy = Policy(timeout_s=30.0, deadline_s=5.0, max_retries=5)
    one = Endpoints(["http://a"])
    steps = exchange(bytes.decode, policy, one, key="k", request_id="r", deadline_at_s=5.0, now_s=0.0)
    assert next(steps) == Send("http://a", 5.0)
    with pytest.raises(DeadlineExceeded, match="within 5 s, 1 tries"):
        steps.send(Event(5.0, 0.5, Timeout("x")))


@pytest.mark.parametrize("values", [(0.0, 1.0, 1), (1.0, 0.0, 1), (1.0, 1.0, -1), (float("nan"), 1.0, 1)])
def test_a_policy_out_of_range_is_refused(values: tuple[float, float, int]) -> None:
    with pytest.raises(InvalidInput):
        Policy(*values)
