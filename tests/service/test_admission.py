"""What may wait: the estimated rate, the limits of the queue, and when a refused request may come back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay_service.engine.admission import Load, QueueLimits, find_refusal
from assay_service.engine.rate import DecayingRatio, DrainRate
from assay_service.errors import DeadlineExceeded, Overloaded, ServingError

LIMITS = QueueLimits(max_wait_s=3.0, max_tokens=100_000, max_items=500)


def refuse(
    ahead_tokens: float = 0,
    tokens: float = 100,
    left_s: float = math.inf,
    *,
    items: int = 1,
    waiting_items: int | None = None,
    rate: float | None = 1000.0,
    is_measured: bool = True,
    is_recent: bool = True,
    limits: QueueLimits = LIMITS,
) -> ServingError | None:
    waiting = (1 if ahead_tokens else 0) if waiting_items is None else waiting_items
    load = Load(ahead_tokens, ahead_tokens, waiting, rate, 8192, is_measured, is_measured and is_recent)
    return find_refusal(load, limits, tokens=tokens, items=items, left_s=left_s)


def test_the_queue_holds_what_is_served_in_the_configured_time() -> None:
    assert refuse(3000) is None
    refusal = refuse(3001)
    assert isinstance(refusal, Overloaded)
    assert (refusal.reason, refusal.retryable) == ("wait", True)
    assert "max_queue_wait_s" in refusal.message
    # Twice the rate, twice the work.
    assert refuse(6000, rate=2000.0) is None


@pytest.mark.parametrize(("ahead_s", "after_s"), [(3.1, 2), (4.0, 3), (11.5, 10), (1e6, 60)])
def test_a_refused_client_returns_when_half_of_the_queue_is_served(ahead_s: float, after_s: int) -> None:
    refusal = refuse(ahead_s * 1000)
    assert isinstance(refusal, Overloaded)
    assert refusal.retry_after_s == after_s
    assert f"try again in {after_s} s" in refusal.message


def test_an_empty_queue_takes_a_request_of_any_size() -> None:
    assert refuse(0, tokens=10**9, items=10**6) is None


def test_limits_by_tokens_and_by_items() -> None:
    fast = 1e9
    assert refuse(99_000, tokens=1000, rate=fast) is None
    refusal = refuse(99_000, tokens=1001, rate=fast)
    assert isinstance(refusal, Overloaded)
    assert (refusal.reason, refusal.retry_after_s) == ("tokens", 1)
    assert refuse(10, items=1, waiting_items=499, rate=fast) is None
    refusal = refuse(10, items=2, waiting_items=499, rate=fast)
    assert isinstance(refusal, Overloaded)
    assert refusal.reason == "items"
    assert "max_queue_items" in refusal.message


def test_before_the_first_pass_the_queue_takes_the_work_of_two() -> None:
    assert refuse(8192, rate=None, is_measured=False) is None
    refusal = refuse(8193, rate=None, is_measured=False)
    assert isinstance(refusal, Overloaded)
    assert (refusal.reason, refusal.retry_after_s) == ("wait", 1)
    assert refuse(8193, rate=None, is_measured=False, limits=QueueLimits()) is None


def test_a_lower_bound_of_the_rate_refuses_no_more_than_an_unknown_one() -> None:
    assert refuse(8192, rate=1.0, is_measured=False) is None
    assert refuse(8193, rate=1.0, is_measured=False) is not None
    assert refuse(30_000, rate=10_000.0, is_measured=False) is None
    assert refuse(30_001, rate=10_000.0, is_measured=False) is not None
    assert refuse(1000, tokens=1000, left_s=1.0, rate=1.0, is_measured=False) is None


def test_a_request_that_would_be_late_is_refused_at_once() -> None:
    assert refuse(1000, tokens=1000, left_s=2.0) is None
    refusal = refuse(1000, tokens=1000, left_s=1.5)
    assert isinstance(refusal, Overloaded)
    assert (refusal.reason, refusal.retry_after_s) == ("deadline", 1)


def test_a_request_that_is_too_large_for_its_time_is_not_retryable() -> None:
    refusal = refuse(0, tokens=5000, left_s=3.0)
    assert isinstance(refusal, DeadlineExceeded)
    assert not refusal.retryable
    # A rate that was measured long ago is measured again.
    assert refuse(0, tokens=5000, left_s=3.0, is_recent=False) is None


def test_a_request_whose_time_is_over_is_refused() -> None:
    refusal = refuse(0, left_s=0.0)
    assert isinstance(refusal, DeadlineExceeded)
    assert (refusal.reason, refusal.retryable) == ("deadline", True)
    assert refuse(0, left_s=-1.0, rate=None) is not None


@given(
    ahead=st.floats(0, 1e9),
    tokens=st.floats(0, 1e9),
    rate=st.none() | st.floats(1e-3, 1e9),
    left_s=st.floats(-10, 1e6) | st.just(math.inf),
    is_measured=st.booleans(),
)
def test_a_refusal_has_a_whole_bounded_wait_of_at_least_a_second(
    ahead: float, tokens: float, rate: float | None, left_s: float, is_measured: bool
) -> None:
    refusal = refuse(ahead, tokens, left_s, rate=rate, is_measured=is_measured)
    if isinstance(refusal, Overloaded):
        assert refusal.retry_after_s in range(1, 61)
    # More work ahead never helps.
    if refusal is not None:
        assert refuse(ahead * 2 + 1, tokens, left_s, rate=rate, is_measured=is_measured) is not None


def test_the_rate_is_that_of_passes_behind_which_work_waits() -> None:
    rate = DrainRate()
    assert read(rate) == (None, False)
    assert not rate.add(100, 1.0, full=True)  # the first pass loads kernels
    assert read(rate) == (100.0, False)
    assert not rate.add(500, 1.0, full=False)
    assert read(rate) == (500.0, False)
    assert rate.add(4000, 1.0, full=True)
    assert read(rate) == (4000.0, True)
    for _ in range(100_000):  # a night of probes, which are short texts alone
        rate.add(15, 0.01, full=False)
    assert read(rate) == (4000.0, True)


def read(rate: DrainRate) -> tuple[float | None, bool]:
    return rate.tokens_per_s, rate.is_measured


def test_the_rate_follows_the_machine_within_seconds() -> None:
    rate = DrainRate()
    for _ in range(50):
        rate.add(4000, 0.5, full=True)
    assert rate.tokens_per_s == pytest.approx(8000)
    for _ in range(10):  # ten seconds at a quarter of the speed
        rate.add(2000, 1.0, full=True)
    assert rate.tokens_per_s == pytest.approx(2000, rel=0.5)
    for _ in range(20):  # a pass that is not full and faster shows it as well
        rate.add(4000, 0.5, full=False)
    assert rate.tokens_per_s == pytest.approx(8000, rel=0.2)


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(1e-4, 10)), min_size=1, max_size=30))
def test_a_decaying_ratio_lies_between_its_terms(terms: list[tuple[int, float]]) -> None:
    ratio = DecayingRatio(5.0)
    assert ratio.value is None
    for above, below in terms:
        ratio.add(above, below)
    assert ratio.value is not None
    rates = [above / below for above, below in terms]
    assert min(rates) * 0.999 <= ratio.value <= max(rates) * 1.001
