"""Queue, worker and faults."""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay_service.engine.engine import Engine, Job
from assay_service.engine.plan import Waiting, next_batch
from assay_service.errors import ForwardFailed, NotFinite, NotReady, Overloaded
from assay_service.metrics import Metrics
from assay_service.scoring.layout import Sequence as Ids
from assay_service.scoring.layout import Span
from assay_service.scoring.model import RewardModel

POISON, NAN = 666, 667
WAIT_S = 20


class FaultyModel:
    """A stand-in for faults: each logit is the sequence's first id; POISON raises, NAN gives NaN."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def logits(self, sequences: Sequence[Ids], name: str) -> torch.Tensor:
        self.gate.wait(WAIT_S)
        firsts = [sequence.ids[0] for sequence in sequences]
        self.batches.append(firsts)
        if POISON in firsts:
            raise RuntimeError("device says no")
        return torch.tensor([math.nan if first == NAN else float(first) for first in firsts])


@contextmanager
def running(model: FaultyModel, *, max_batch_tokens: int = 100, max_queue_tokens: int = 1000) -> Iterator[Engine]:
    engine = Engine(
        cast("dict[str, RewardModel]", {"a": model, "b": model}),
        max_batch_tokens=max_batch_tokens,
        max_queue_tokens=max_queue_tokens,
        metrics=Metrics(),
    )
    engine.start()
    try:
        yield engine
    finally:
        model.gate.set()
        engine.stop()


def jobs(firsts: Sequence[int], signal: str = "a", length: int = 3) -> list[Job]:
    return [Job(signal, Ids((first,) * length, 0, Span(0, 1))) for first in firsts]


waiting = st.lists(st.builds(Waiting, st.sampled_from(["a", "b", "c"]), st.integers(1, 120)), max_size=40)


@given(waiting, st.integers(1, 100))
def test_plan_takes_the_oldest_keeps_order_and_budget(queue: list[Waiting], limit: int) -> None:
    chosen = next_batch(queue, limit)
    assert chosen == sorted(set(chosen))
    assert bool(chosen) == bool(queue)
    if queue:
        assert chosen[0] == 0
        assert {queue[i].signal for i in chosen} == {queue[0].signal}
        assert len(chosen) == 1 or sum(queue[i].tokens for i in chosen) <= limit
        left = [w for i, w in enumerate(queue) if i not in chosen and w.signal == queue[0].signal]
        if left:  # and no room is wasted: the next one of the signal did not fit
            assert sum(queue[i].tokens for i in chosen) + left[0].tokens > limit


@given(waiting, st.integers(1, 100))
def test_plan_empties_the_queue_without_losing_or_repeating(queue: list[Waiting], limit: int) -> None:
    left = list(range(len(queue)))
    served: list[int] = []
    while left:
        chosen = next_batch([queue[i] for i in left], limit)
        served += [left[i] for i in chosen]
        left = [i for position, i in enumerate(left) if position not in chosen]
    assert sorted(served) == list(range(len(queue)))


def test_logits_come_back_to_their_jobs() -> None:
    with running(FaultyModel()) as engine:
        submitted = jobs(range(1, 200))
        engine.submit(submitted)
        assert [job.logit.result(WAIT_S) for job in submitted] == list(range(1, 200))


def test_one_bad_sequence_does_not_fail_its_neighbours() -> None:
    """Trap 13, and a forward that raises."""
    with running(FaultyModel()) as engine:
        submitted = jobs([1, POISON, NAN, 4])
        engine.submit(submitted)
        assert submitted[0].logit.result(WAIT_S) == 1.0
        assert submitted[3].logit.result(WAIT_S) == 4.0
        assert isinstance(submitted[1].logit.exception(WAIT_S), ForwardFailed)
        assert isinstance(submitted[2].logit.exception(WAIT_S), NotFinite)
        again = jobs([7])
        engine.submit(again)
        assert again[0].logit.result(WAIT_S) == 7.0


def test_what_waits_is_batched_across_requests_and_by_signal() -> None:
    model = FaultyModel()
    model.gate.clear()
    with running(model) as engine:
        first = jobs([1])
        engine.submit(first)
        while engine._queue:
            pass
        for part in (jobs([2, 3]), jobs([4], "b"), jobs([5])):
            engine.submit(part)
        model.gate.set()
        first[0].logit.result(WAIT_S)
    assert model.batches == [[1], [2, 3, 5], [4]]


def test_a_full_queue_refuses_the_whole_request_and_an_empty_one_takes_any() -> None:
    """Trap 27: nothing is unservable, and nothing is half accepted."""
    model = FaultyModel()
    model.gate.clear()
    with running(model, max_queue_tokens=10) as engine:
        huge = jobs(range(1, 50))
        engine.submit(huge)
        with pytest.raises(Overloaded) as caught:
            engine.submit(jobs([1]))
        assert caught.value.retryable
        assert caught.value.retry_after_s > 0
        model.gate.set()
        assert [job.logit.result(WAIT_S) for job in huge] == list(range(1, 50))


def test_cancelled_jobs_are_not_computed() -> None:
    model = FaultyModel()
    model.gate.clear()
    with running(model) as engine:
        first, gone, kept = jobs([1]), jobs([2, 3]), jobs([4])
        engine.submit(first)
        engine.submit(gone)
        engine.submit(kept)
        for job in gone:
            job.logit.cancel()
        model.gate.set()
        assert kept[0].logit.result(WAIT_S) == 4.0
    assert 2 not in [first for batch in model.batches for first in batch]


def test_stopping_finishes_what_waits_and_refuses_what_comes() -> None:
    model = FaultyModel()
    with running(model) as engine:
        submitted = jobs(range(1, 100))
        engine.submit(submitted)
        engine.stop()
        assert all(job.logit.done() for job in submitted)
        with pytest.raises(NotReady):
            engine.submit(jobs([1]))
        assert not engine.alive


def test_an_engine_that_was_never_started_accepts_nothing() -> None:
    engine = Engine({}, max_batch_tokens=1, max_queue_tokens=1, metrics=Metrics())
    with pytest.raises(NotReady):
        engine.submit(cast("Any", jobs([1])))
