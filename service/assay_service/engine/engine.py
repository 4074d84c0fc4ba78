"""Run the models on one thread, behind a bounded queue.

All forward passes run on one thread, because switching adapters changes a base's state. Computed logits are cached, and
a sequence that is being computed is not computed a second time. One forward pass gives the logits of all signals of a
trunk. `fault.py` says how faults are handled.
"""

import logging
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import torch

from assay_service.engine.admission import QueueLimits, Terms
from assay_service.engine.backlog import Backlog
from assay_service.engine.cache import Outputs
from assay_service.engine.fault import Fault, is_device_working, make_device_error
from assay_service.engine.job import Job, Task, add_pass, make_done_future
from assay_service.engine.known import Known
from assay_service.engine.plan import count_computed_tokens
from assay_service.engine.progress import Progress
from assay_service.errors import AssayError, NotReady
from assay_service.telemetry.metrics import Metrics
from assay_service.telemetry.timings import Timings

_TERMS = Terms()  # of whoever says nothing

_log = logging.getLogger("assay")


class Engine:
    """A queue and a worker thread that score sequences in batches of whatever is waiting.

    Args:
        max_batch_tokens: most tokens that one forward pass computes.
        limits: limits of the queue, beyond which requests are refused.
        cache_bytes: size of the cache of logits. 0 turns off the cache, and also the sharing of a sequence that two
            requests wait for at the same time.
        max_forward_s: seconds of one forward pass, or without a result while work waits, from which on it stalls.
        metrics: the counters and histograms that every batch updates.
        on_failure: callback, called once on the worker's thread when the device has failed.

    Attributes:
        failed: True once the device has failed; only a new process can score again then.
        stopping: True once new jobs are refused.
        progress: the times of the worker's forward passes.
        alone: lock of a forward pass; whoever changes settings of torch that all threads share holds it.
    """

    def __init__(
        self,
        *,
        max_batch_tokens: int,
        limits: QueueLimits,
        cache_bytes: int,
        max_forward_s: float,
        metrics: Metrics,
        on_failure: Callable[[], None],
    ) -> None:
        self._shares = cache_bytes > 0
        self._backlog: Backlog[Job] = Backlog(limits, max_batch_tokens)
        self._known = Known(cache_bytes, metrics)
        self._metrics = metrics
        metrics.oldest_s.set_function(self.get_age_of_oldest_s)
        self._on_failure = on_failure
        self._computed: list[Job] = []  # what has succeeded of the running batch
        self._changed = threading.Condition()
        self.stopping = self.failed = False
        self.progress = Progress(max_forward_s)
        self.alone = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="assay-engine", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Refuse new jobs, finish those that wait, and return when the worker has ended, or after `timeout_s`."""
        with self._changed:
            self.stopping = True
            self._changed.notify_all()
        # A start that failed has no running worker, and joining it would raise an error.
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """Return True while the worker runs and its device works."""
        return self._thread.is_alive() and not self.failed

    def explain_stall(self) -> str | None:
        """Return why the worker makes no progress; None while it does, or has nothing to do."""
        return self.progress.explain_stall(len(self._backlog.queue), time.monotonic())

    def get_age_of_oldest_s(self) -> float:
        """Return the seconds that the oldest sequence in the queue has waited; 0 for an empty queue."""
        with self._changed:
            oldest = self._known.find_oldest(self._backlog.queue)
        return 0.0 if oldest is None else time.monotonic() - oldest.since_s

    @contextmanager
    def expect(self, terms: Terms, chars: int, items: int) -> Iterator[None]:
        """Expect a request within the block, so that its place is not promised to those that come meanwhile.

        The arguments and errors are those of `Backlog.expect`.
        """
        with self._changed:
            expected = self._backlog.expect(terms, chars, items, time.monotonic())
        try:
            yield
        finally:
            with self._changed:
                self._backlog.forget(expected, items)

    def submit(
        self,
        tasks: Sequence[Task],
        terms: Terms = _TERMS,
        timings: Timings | None = None,
        *,
        chars: int = 0,
        fresh: bool = False,
    ) -> list["Future[Outputs]"]:
        """Queue all `tasks`, or none of them.

        Args:
            tasks: sequences to score.
            terms: conditions of the request.
            timings: times of the request, to which the submission and every pass are added; None keeps no times.
            chars: number of characters of its items, from which later requests are estimated; 0 if it is not known.
            fresh: True computes them even if their logits are cached.

        Returns:
            One future for each task, which gives its logits or an `AssayError`. A sequence whose futures are all
            cancelled leaves the queue at once.

        Raises:
            ServingError: the queue refuses the tasks (see `Backlog.add`), or the engine is stopping.
        """
        now_s = time.monotonic()
        timings = timings or Timings(now_s)
        timings.submitted_s = now_s
        # Making jobs hashes their ids, which takes long enough to do it before the lock.
        candidates = [Job(task, now_s, is_reusable=self._shares and not fresh) for task in tasks]
        with self._changed:
            if self.stopping or not self._thread.is_alive():
                raise NotReady("the service is shutting down")
            found = self._known.find(candidates)
            jobs = [job for job in dict.fromkeys(found.jobs) if isinstance(job, Job)]
            # Jobs that run already need no place in the queue.
            waiting = [job for job in jobs if job in found.new or job in self._backlog.queue]
            if waiting and not self.failed:
                if not self._backlog.queue:
                    self.progress.wait(now_s)
                self._backlog.add(terms, waiting, chars, now_s)
            timings.sequences, timings.cached = len(tasks), found.cached
            futures = [
                job.subscribe(timings, self._drop_abandoned) if isinstance(job, Job) else make_done_future(job)
                for job in found.jobs
            ]
            if self.failed:  # these jobs get the error of the device at once and not after a wait in the queue
                for job in found.new:
                    job.fail(make_device_error())
            else:
                self._known.add(found)
                self._show_queue()
                self._changed.notify_all()
        return futures

    def find_cached(self, keys: Sequence[tuple[bytes, int]]) -> list[Outputs] | None:
        """Return the logits of sequences, and count them; None if one is not cached, or if the engine has ended.

        Args:
            keys: the key of each sequence, as `compute_key` gives it, and its number of tokens.
        """
        with self._changed:
            ended = self.stopping or not self._thread.is_alive()
            return None if ended else self._known.find_cached(keys)

    def _work(self) -> None:
        try:
            while self._work_once():
                pass
        except BaseException:  # a bug in the engine: no request may wait for ever
            _log.exception("the worker ends because of an error that it does not handle")
            self._fail()
            raise

    def _work_once(self) -> bool:
        """Wait for jobs and run a batch; return False when the engine stops. A worker that waits holds no model."""
        with self._changed:
            self._changed.wait_for(lambda: self._backlog.queue or self.stopping)
            batch = self._backlog.take()
            self._show_queue()
        started_s = time.monotonic()
        for job in batch:
            self._metrics.queue_s.observe(started_s - job.since_s)
        if batch:
            self._run(batch)
            with self._changed:
                now_s = time.monotonic()
                self._backlog.finish_pass(self._computed, now_s - started_s, now_s)
                self._metrics.drain_rate.set(self._backlog.rate.tokens_per_s or 0.0)
                self._computed = []
        return bool(batch)

    def _drop_abandoned(self, job: Job) -> None:
        """Remove a job that no request waits for any more, unless it runs already; called when one has left."""
        with self._changed:
            if job.abandoned and job in self._backlog.queue:
                self._backlog.queue.drop([job])
                self._known.remove(job)
                self._show_queue()

    def _show_queue(self) -> None:
        self._metrics.queue_tokens.set(self._backlog.queue.tokens)
        self._metrics.queue_items.set(len(self._backlog.queue))

    def _run(self, batch: list[Job], *, split: bool = False) -> None:
        forward = self._forward(batch)
        if isinstance(forward, Fault):
            self._recover(batch, forward, split=split)
            return
        signals = batch[0].task.trunk.signals
        for job, numbers in zip(batch, forward, strict=True):
            outputs = tuple(each if all(map(math.isfinite, each)) else None for each in numbers)
            for name, of_signal in zip(signals, outputs, strict=True):
                if of_signal is None:
                    self._metrics.not_finite.labels(name).inc()
                else:
                    self.progress.succeed(name, time.monotonic())
            self._finish(job, outputs)

    def _recover(self, batch: list[Job], fault: Fault, *, split: bool) -> None:
        if fault.device:
            self._fail()
            return
        if len(batch) == 1 or (split and fault.out_of_memory):
            for job in batch:
                self._finish(job, fault.make_error())
            return
        # One by one, the sequence that raised fails alone.
        parts = [[job] for job in batch]
        if fault.out_of_memory:
            self._metrics.out_of_memory.inc()
            parts = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        for part in parts:
            if not self.failed:
                self._run(part, split=split or fault.out_of_memory)

    def _fail(self) -> None:
        """Fail all unfinished jobs and compute nothing any more; cached logits are still answered."""
        with self._changed:
            self.failed = True
            unfinished = self._known.remove_all()
            self._backlog.queue.clear()
            self._show_queue()
        for job in unfinished:
            job.fail(make_device_error())
        self._on_failure()

    def _finish(self, job: Job, outcome: Outputs | AssayError) -> None:
        with self._changed:
            self._known.remove(job)
            if not isinstance(outcome, AssayError):
                self._known.keep(job, outcome)
        # Outside the lock, because a future runs its callbacks on this thread.
        if isinstance(outcome, AssayError):
            job.fail(outcome)
        else:
            job.finish(outcome)

    def _forward(self, batch: list[Job]) -> list[tuple[tuple[float, ...], ...]] | Fault:
        trunk = batch[0].task.trunk
        started_s = time.monotonic()
        self.progress.begin_pass(started_s)
        try:
            with self.alone, torch.inference_mode():
                numbers = trunk.compute([job.task.sequence for job in batch])
        except Exception as error:
            add_pass(batch, started_s, time.monotonic())
            # The trace is logged as text: a log handler that keeps the exception would keep its frames' tensors.
            _log.warning("a forward pass of %s failed\n%s", trunk.name, traceback.format_exc())
            return Fault.classify(error, is_device_working=is_device_working(trunk.model.device))
        finally:
            self.progress.end_pass(time.monotonic())
        ended_s = time.monotonic()
        add_pass(batch, started_s, ended_s)
        self._computed += batch
        tokens = count_computed_tokens([job.waiting for job in batch])
        self._metrics.count_pass(trunk.name, ended_s - started_s, tokens, sum(job.tokens for job in batch))
        return numbers
