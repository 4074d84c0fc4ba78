"""Queue, worker, what is remembered, and faults."""

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch

from assay_service.engine.admission import QueueLimits, Terms
from assay_service.engine.cache import Outputs
from assay_service.engine.engine import Engine
from assay_service.engine.job import Task
from assay_service.errors import ForwardFailed, NotReady, Overloaded
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.model import RewardModel
from assay_service.scoring.trunk import Trunk
from assay_service.telemetry.metrics import Metrics

POISON, NAN, BROKEN = 666, 667, 668
WAIT_S = 20
UNLIMITED = QueueLimits()


class FaultyModel:
    """A stand-in for faults: each logit is the sequence's first id; POISON raises, NAN gives NaN, BROKEN is the device.

    Args:
        capacity: more sequences at once are out of memory.
    """

    shares_prompts = True
    device = torch.device("cpu")

    def __init__(self, capacity: int = 10_000) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self._capacity = capacity

    def read(self, sequences: Sequence[TokenSequence], names: Sequence[str]) -> list[list[tuple[float, ...]]]:
        self.gate.wait(WAIT_S)
        firsts = [sequence.ids[0] for sequence in sequences]
        self.batches.append(firsts)
        if len(firsts) > self._capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if POISON in firsts:
            raise RuntimeError("device says no")
        if BROKEN in firsts:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        logits = [math.nan if first == NAN else float(first) for first in firsts]
        return [[(logit * sign,) for logit in logits] for sign in (1, -1)[: len(names)]]


@dataclass(frozen=True)
class NamedTask:
    signal: str
    sequence: TokenSequence


class EngineOf(Engine):
    """An engine whose tasks name the signals "a" and "b" of one model."""

    def __init__(self, model: FaultyModel, **settings: Any) -> None:
        super().__init__(**settings)
        self._trunks = {name: Trunk(name, cast("RewardModel", model), (name,)) for name in ("a", "b")}

    def submit(self, tasks: Sequence[Any], *args: Any, **kwargs: Any) -> list["Future[Outputs]"]:
        named = [Task(self._trunks[t.signal], t.sequence, f"signal {t.signal}") for t in tasks]
        return super().submit(named, *args, **kwargs)


@contextmanager
def running(
    model: FaultyModel,
    *,
    max_batch_tokens: int = 100,
    limits: QueueLimits = UNLIMITED,
    cache_bytes: int = 0,
    metrics: Metrics | None = None,
    on_failure: Callable[[], None] = lambda: None,
) -> Iterator[EngineOf]:
    engine = EngineOf(
        model,
        max_batch_tokens=max_batch_tokens,
        limits=limits,
        cache_bytes=cache_bytes,
        max_forward_s=60,
        metrics=metrics or Metrics(),
        on_failure=on_failure,
    )
    engine.start()
    try:
        yield engine
    finally:
        model.gate.set()
        engine.stop()


def tasks(firsts: Sequence[int], signal: str = "a", length: int = 3) -> list[NamedTask]:
    return [NamedTask(signal, TokenSequence((first,) * length, 0, Span(0, 1))) for first in firsts]


def logit(future: "Future[Outputs]") -> float:
    """The one number of a trunk with one signal."""
    ((number,),) = cast("tuple[tuple[float]]", future.result(WAIT_S))
    return number


def busy(engine: EngineOf, model: FaultyModel) -> Any:
    """Closes the gate and lets the worker run into it; returns the future it works on."""
    model.gate.clear()
    (future,) = engine.submit(tasks([1]))
    while engine._backlog.queue:
        time.sleep(0.001)
    return future


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics._registry.get_sample_value(name, labels) or 0.0


def test_logits_come_back_to_their_tasks() -> None:
    with running(FaultyModel()) as engine:
        futures = engine.submit(tasks(range(1, 200)))
        assert [logit(future) for future in futures] == list(range(1, 200))


def test_one_bad_sequence_does_not_fail_its_neighbors() -> None:
    """Trap 13, and a forward that raises."""
    with running(FaultyModel()) as engine:
        futures = engine.submit(tasks([1, POISON, NAN, 4]))
        assert logit(futures[0]) == 1.0
        assert logit(futures[3]) == 4.0
        assert isinstance(futures[1].exception(WAIT_S), ForwardFailed)
        assert futures[2].result(WAIT_S) == (None,)
        assert logit(engine.submit(tasks([7]))[0]) == 7.0


def test_what_waits_is_batched_across_requests_and_by_signal() -> None:
    model = FaultyModel()
    with running(model) as engine:
        busy(engine, model)
        for part in (tasks([2]), tasks([3]), tasks([4], "b"), tasks([5])):
            engine.submit(part)
        model.gate.set()
    assert model.batches == [[1], [2, 3, 5], [4]]


def test_a_shared_prompt_counts_once_across_requests() -> None:
    model = FaultyModel()
    prompt = (9,) * 90
    siblings = [NamedTask("a", TokenSequence((*prompt, i), 90, Span(90, 91))) for i in range(10)]
    with running(model) as engine:
        busy(engine, model)
        for sibling in siblings:
            engine.submit([sibling])
        model.gate.set()
    assert model.batches == [[1], [9] * 10]


def test_a_full_queue_refuses_the_whole_request_and_an_empty_one_takes_any() -> None:
    """Trap 27: nothing is unservable, and nothing is half accepted."""
    model = FaultyModel()
    with running(model, limits=QueueLimits(max_tokens=10)) as engine:
        busy(engine, model)
        huge = engine.submit(tasks(range(1, 50)))
        with pytest.raises(Overloaded) as caught:
            engine.submit(tasks([1]))
        assert caught.value.retryable
        assert caught.value.retry_after_s > 0
        model.gate.set()
        assert [logit(future) for future in huge] == list(range(1, 50))


def test_cancelled_work_is_not_done() -> None:
    model = FaultyModel()
    with running(model) as engine:
        busy(engine, model)
        gone, kept = engine.submit(tasks([2, 3])), engine.submit(tasks([4]))
        for future in gone:
            future.cancel()
        model.gate.set()
        assert logit(kept[0]) == 4.0
    assert 2 not in [first for batch in model.batches for first in batch]


def test_cancelled_work_leaves_the_queue_while_a_pass_runs() -> None:
    """A disconnect frees its room at once, and not when the worker looks again."""
    model, metrics = FaultyModel(), Metrics()
    with running(model, limits=QueueLimits(max_tokens=12), metrics=metrics) as engine:
        busy(engine, model)
        gone = engine.submit(tasks([2, 3, 4]))
        with pytest.raises(Overloaded):
            engine.submit(tasks([5, 6]))
        for future in gone:
            future.cancel()
        assert sample(metrics, "assay_queue_tokens") == 0
        assert sample(metrics, "assay_queue_oldest_seconds") == 0  # what runs does not wait
        kept = engine.submit(tasks([5, 6]))
        time.sleep(0.05)
        assert 0.05 <= sample(metrics, "assay_queue_oldest_seconds") < WAIT_S
        model.gate.set()
        assert [logit(future) for future in kept] == [5.0, 6.0]
    assert model.batches == [[1], [5, 6]]


def test_callers_take_turns_and_their_requests_are_finished_one_by_one() -> None:
    model = FaultyModel()
    with running(model, max_batch_tokens=6) as engine:
        busy(engine, model)
        for first in (10, 20, 30):
            engine.submit(tasks([first, first + 1]), Terms("x"))
        engine.submit(tasks([80, 81]), Terms("y"))
        model.gate.set()
    assert model.batches == [[1], [10, 11], [80, 81], [20, 21], [30, 31]]


def test_a_request_that_is_expected_has_its_place_before_later_ones() -> None:
    model = FaultyModel()
    with running(model, limits=QueueLimits(max_items=4)) as engine:
        busy(engine, model)
        with engine.expect(Terms(), 100, 4):
            with pytest.raises(Overloaded), engine.expect(Terms(), 100, 1):
                pass
            with engine.expect(Terms(exempt=True), 10, 1):
                pass
        with engine.expect(Terms(), 100, 4):
            pass
        model.gate.set()


def test_stopping_finishes_what_waits_and_refuses_what_comes() -> None:
    with running(FaultyModel()) as engine:
        futures = engine.submit(tasks(range(1, 100)))
        engine.stop()
        assert all(future.done() for future in futures)
        with pytest.raises(NotReady):
            engine.submit(tasks([1]))
        assert not engine.alive


def test_an_engine_that_was_never_started_accepts_nothing() -> None:
    engine = EngineOf(
        FaultyModel(),
        max_batch_tokens=1,
        limits=QueueLimits(),
        cache_bytes=0,
        max_forward_s=60,
        metrics=Metrics(),
        on_failure=lambda: None,
    )
    with pytest.raises(NotReady):
        engine.submit(tasks([1]))


def test_what_was_computed_is_remembered_by_signal() -> None:
    model, metrics = FaultyModel(), Metrics()
    with running(model, cache_bytes=10_000, metrics=metrics) as engine:
        for _ in range(3):
            assert logit(engine.submit(tasks([5]))[0]) == 5.0
        assert logit(engine.submit(tasks([5], "b"))[0]) == 5.0
        assert logit(engine.submit(tasks([5]), fresh=True)[0]) == 5.0
    assert model.batches == [[5], [5], [5]]
    assert sample(metrics, "assay_lookups_total", result="hit") == 2
    assert sample(metrics, "assay_cache_bytes") > 0


def test_what_is_being_computed_is_computed_once_for_all_who_ask() -> None:
    model, metrics = FaultyModel(), Metrics()
    with running(model, cache_bytes=10_000, metrics=metrics) as engine:
        running_now = busy(engine, model)
        joined = [*engine.submit(tasks([1])), *engine.submit(tasks([2, 2])), *engine.submit(tasks([2]))]
        model.gate.set()
        assert [logit(future) for future in (running_now, *joined)] == [1.0, 1.0, 2.0, 2.0, 2.0]
    assert model.batches == [[1], [2]]
    assert sample(metrics, "assay_lookups_total", result="in_flight") == 3


def test_one_who_leaves_does_not_take_the_work_from_the_others() -> None:
    model = FaultyModel()
    with running(model, cache_bytes=10_000) as engine:
        busy(engine, model)
        (left,), (stayed,) = engine.submit(tasks([2])), engine.submit(tasks([2]))
        left.cancel()
        model.gate.set()
        assert logit(stayed) == 2.0


def test_failures_are_not_remembered() -> None:
    model = FaultyModel()
    with running(model, cache_bytes=10_000) as engine:
        for _ in range(2):
            assert engine.submit(tasks([NAN]))[0].result(WAIT_S) == (None,)
    assert model.batches == [[NAN], [NAN]]


def test_without_a_cache_everything_is_computed() -> None:
    model = FaultyModel()
    with running(model) as engine:
        assert [logit(f) for f in engine.submit(tasks([5, 5]))] == [5.0, 5.0]
        engine.submit(tasks([5]))
    assert model.batches == [[5, 5], [5]]


def test_out_of_memory_splits_the_batch_once() -> None:
    model, metrics = FaultyModel(capacity=2), Metrics()
    with running(model, metrics=metrics) as engine:
        assert [logit(future) for future in engine.submit(tasks([1, 2, 3, 4]))] == [1.0, 2.0, 3.0, 4.0]
        assert model.batches == [[1, 2, 3, 4], [1, 2], [3, 4]]
        failed = engine.submit(tasks([1, 2, 3, 4, 5, 6]))
        assert all(isinstance(future.exception(WAIT_S), ForwardFailed) for future in failed)
        assert logit(engine.submit(tasks([7]))[0]) == 7.0
    assert sample(metrics, "assay_out_of_memory_total") == 2


def test_a_failed_device_answers_what_is_remembered_and_nothing_else() -> None:
    model, failures = FaultyModel(), threading.Event()
    with running(model, cache_bytes=10_000, on_failure=failures.set) as engine:
        assert logit(engine.submit(tasks([5]))[0]) == 5.0
        busy(engine, model)
        broken, waiting = engine.submit(tasks([BROKEN])), engine.submit(tasks([6], "b"))
        model.gate.set()
        for future in (*broken, *waiting):
            error = future.exception(WAIT_S)
            assert isinstance(error, ForwardFailed)
            assert error.retryable
        assert failures.wait(WAIT_S)
        assert engine.failed
        assert not engine.alive
        known, new = engine.submit(tasks([5, 8]))
        assert logit(known) == 5.0
        assert isinstance(new.exception(WAIT_S), ForwardFailed)
    assert [8] not in model.batches


def test_nothing_runs_on_a_device_that_failed_while_its_batch_was_taken_apart() -> None:
    model, failures = FaultyModel(), []
    with running(model, on_failure=lambda: failures.append(1)) as engine:
        busy(engine, model)
        futures = engine.submit(tasks([POISON, BROKEN, 3]))
        model.gate.set()
        assert all(isinstance(future.exception(WAIT_S), ForwardFailed) for future in futures)
    assert model.batches[-2:] == [[POISON], [BROKEN]]
    assert failures == [1]


def test_the_tensors_of_a_forward_that_ran_out_of_memory_are_gone_when_it_is_tried_again() -> None:
    class Hoarding(FaultyModel):
        held: weakref.ref[torch.Tensor] | None = None
        alive_at_retry: bool | None = None

        def read(self, sequences: Sequence[TokenSequence], names: Sequence[str]) -> list[list[tuple[float, ...]]]:
            if len(sequences) == 2:
                tensor = torch.ones(10)
                self.held = weakref.ref(tensor)
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.alive_at_retry = self.held is not None and self.held() is not None
            return super().read(sequences, names)

    model = Hoarding()
    with running(model) as engine:
        assert [logit(future) for future in engine.submit(tasks([1, 2]))] == [1.0, 2.0]
    assert model.alive_at_retry is False


def test_joining_a_job_that_is_due_late_brings_it_forward() -> None:
    model = FaultyModel()
    with running(model, cache_bytes=10_000, max_batch_tokens=3) as engine:
        busy(engine, model)
        engine.submit(tasks(range(10, 20)))
        (joined,) = engine.submit(tasks([19]))
        model.gate.set()
        joined.result(WAIT_S)
    order = [batch[0] for batch in model.batches]
    assert order.index(19) <= order.index(11)


def test_a_bug_in_the_worker_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    model, failures = FaultyModel(), threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with running(model, on_failure=failures.set) as engine:
        monkeypatch.setattr(engine, "_finish", lambda *_: 1 / 0)
        (future,) = engine.submit(tasks([5]))
        assert isinstance(future.exception(WAIT_S), ForwardFailed)
        assert failures.wait(WAIT_S)
        assert not engine.alive
