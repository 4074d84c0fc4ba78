"""Run the models on one thread, behind a bounded queue.

All forward passes run on one thread, because switching adapters changes a base's state. Computed logits are cached, and
a sequence that is being computed is not computed a second time. One forward pass gives the logits of all signals of a
trunk. Faults are handled as follows:

- Out of memory: the batch is split in two and tried again, once.
- The device failed: nothing is computed any more.
- Any other exception: the sequences run one by one, so that one bad sequence does not fail its neighbors.
- A logit that is not finite: only that signal of that sequence fails.
"""

import logging
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import torch

from assay_service.engine.admission import QueueLimits, Terms
from assay_service.engine.backlog import Backlog
from assay_service.engine.cache import Outputs, ResultCache
from assay_service.engine.fault import Fault
from assay_service.engine.job import Job, Task
from assay_service.engine.plan import count_computed_tokens
from assay_service.errors import AssayError, ForwardFailed, NotReady
from assay_service.metrics import Metrics
from assay_service.scoring.trunk import Trunk

_TERMS = Terms()  # of whoever says nothing

_log = logging.getLogger("assay")


class Engine:
    """A queue and a worker thread that score sequences in batches of whatever is waiting.

    Args:
        trunks: trunks by name.
        identities: fingerprints of everything that decides the logits besides their sequence, by name of the trunk. A
            trunk without one, whose invariance was not shown, is neither cached nor shared between requests.
        max_batch_tokens: most tokens that one forward pass computes.
        limits: limits of the queue, beyond which requests are refused.
        cache_bytes: size of the cache of logits. 0 turns off the cache, and also the sharing of a sequence that two
            requests wait for at the same time.
        metrics: the counters and histograms that every batch updates.
        on_failure: callback, called once on the worker's thread when the device has failed.
    """

    def __init__(
        self,
        trunks: Mapping[str, Trunk],
        identities: Mapping[str, str],
        *,
        max_batch_tokens: int,
        limits: QueueLimits,
        cache_bytes: int,
        metrics: Metrics,
        on_failure: Callable[[], None],
    ) -> None:
        self._trunks = trunks
        self._identities = identities if cache_bytes else {}
        self._backlog: Backlog[Job] = Backlog(limits, max_batch_tokens)
        self._cache = ResultCache(cache_bytes)
        self._metrics = metrics
        self._on_failure = on_failure
        # Jobs stay here while they run, so that a request which comes then still joins them.
        self._unfinished: dict[bytes, Job] = {}  # waiting or running
        self._computed: list[Job] = []  # what has succeeded of the running batch
        self._changed = threading.Condition()
        self._stopping = False
        self._failed = False
        self._last_success_s = {name: -math.inf for trunk in trunks.values() for name in trunk.signals}
        self._thread = threading.Thread(target=self._work, name="assay-engine", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    def stop(self) -> None:
        """Refuse new jobs, finish those that wait, and return when the worker has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        # A start that failed has no running worker, and joining it would raise an error.
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Return True while the worker runs and its device works."""
        return self._thread.is_alive() and not self._failed

    @property
    def failed(self) -> bool:
        """Return True once the device has failed; only a new process can score again then."""
        return self._failed

    @property
    def stopping(self) -> bool:
        """Return True once new jobs are refused."""
        return self._stopping

    def get_age_of_success_s(self, signal: str) -> float:
        """Return the seconds since a forward pass of `signal` last gave a finite logit; infinite before the first."""
        return time.monotonic() - self._last_success_s[signal]

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
        self, tasks: Sequence[Task], terms: Terms = _TERMS, *, chars: int = 0, fresh: bool = False
    ) -> list["Future[Outputs]"]:
        """Queue all `tasks`, or none of them.

        Args:
            tasks: sequences to score.
            terms: conditions of the request.
            chars: number of characters of its items, from which later requests are estimated; 0 if it is not known.
            fresh: True computes them even if their logits are cached.

        Returns:
            One future for each task, which gives its logits or an `AssayError`. A sequence whose futures are all
            cancelled leaves the queue at once.

        Raises:
            ServingError: the queue refuses the tasks (see `Backlog.add`), or the engine is stopping.
        """
        now_s = time.monotonic()
        # Making jobs hashes their ids, which takes long enough to do it before the lock.
        candidates = [self._make_job(task, now_s, fresh=fresh) for task in tasks]
        with self._changed:
            if self._stopping or not self._thread.is_alive():
                raise NotReady("the service is shutting down")
            jobs, new = self._find_or_add(candidates)
            # Jobs that run already need no place in the queue.
            waiting = [j for j in dict.fromkeys(jobs) if isinstance(j, Job) and (j in new or j in self._backlog.queue)]
            if waiting and not self._failed:
                self._backlog.add(terms, waiting, chars, now_s)
            drop = self._drop_abandoned
            futures = [job.subscribe(drop) if isinstance(job, Job) else _make_done_future(job) for job in jobs]
            if self._failed:  # these jobs get the error of the device at once and not after a wait in the queue
                for job in new:
                    job.fail(_make_device_error())
            else:
                self._unfinished |= {job.key: job for job in new}
                self._show_queue()
                self._changed.notify_all()
        return futures

    def _make_job(self, task: Task, now_s: float, *, fresh: bool) -> Job:
        identity = None if fresh else self._identities.get(task.trunk)
        return Job(task, identity, now_s, shares_prompt=self._trunks[task.trunk].model.shares_prompts)

    def _find_or_add(self, candidates: Sequence[Job]) -> tuple[list[Job | Outputs], dict[Job, None]]:
        """Return each candidate's cached logits, or the job that will give them; and the jobs that are new."""
        jobs: list[Job | Outputs] = []
        new: dict[bytes, Job] = {}
        for job in candidates:
            cached = self._cache.get(job.key) if job.reusable else None
            if cached is not None:
                jobs.append(cached)
                self._metrics.lookups.labels("hit").inc()
                continue
            # A request may hold the same sequence twice, so its own new jobs count as well.
            earlier = self._unfinished.get(job.key, new.get(job.key))
            self._metrics.lookups.labels("miss" if earlier is None else "in_flight").inc()
            jobs.append(new.setdefault(job.key, job) if earlier is None else earlier)
        return jobs, dict.fromkeys(new.values())

    def _work(self) -> None:
        try:
            while batch := self._take():
                started_s = time.monotonic()
                for job in batch:
                    self._metrics.queue_s.observe(started_s - job.since_s)
                self._run(batch)
                with self._changed:
                    now_s = time.monotonic()
                    self._backlog.finish_pass(self._computed, now_s - started_s, now_s)
                    self._metrics.drain_rate.set(self._backlog.rate.tokens_per_s or 0.0)
        except BaseException:  # a bug in the engine: no request may wait for ever
            _log.exception("the worker ends because of an error that it does not handle")
            self._fail()
            raise

    def _take(self) -> list[Job]:
        """Wait for jobs and take the next batch out of the queue; return an empty one when the engine stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._backlog.queue or self._stopping)
            self._computed, batch = [], self._backlog.take()
            self._show_queue()
        return batch

    def _drop_abandoned(self, job: Job) -> None:
        """Remove a job that no request waits for any more, unless it runs already; called when one has left."""
        with self._changed:
            if job.abandoned and job in self._backlog.queue:
                self._backlog.queue.drop([job])
                del self._unfinished[job.key]
                self._show_queue()

    def _show_queue(self) -> None:
        self._metrics.queue_tokens.set(self._backlog.queue.tokens)
        self._metrics.queue_items.set(len(self._backlog.queue))

    def _run(self, batch: list[Job], *, split: bool = False) -> None:
        forward = self._forward(batch)
        if isinstance(forward, Fault):
            self._recover(batch, forward, split=split)
            return
        signals = self._trunks[batch[0].task.trunk].signals
        for job, numbers in zip(batch, forward, strict=True):
            outputs = tuple(each if all(map(math.isfinite, each)) else None for each in numbers)
            for name, of_signal in zip(signals, outputs, strict=True):
                if of_signal is None:
                    self._metrics.not_finite.labels(name).inc()
                else:
                    self._last_success_s[name] = time.monotonic()
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
            if not self._failed:
                self._run(part, split=split or fault.out_of_memory)

    def _fail(self) -> None:
        """Fail all unfinished jobs and compute nothing any more; cached logits are still answered."""
        with self._changed:
            self._failed = True
            unfinished, self._unfinished = list(self._unfinished.values()), {}
            self._backlog.queue.clear()
            self._show_queue()
        for job in unfinished:
            job.fail(_make_device_error())
        self._on_failure()

    def _finish(self, job: Job, outcome: Outputs | AssayError) -> None:
        with self._changed:
            del self._unfinished[job.key]
            if not isinstance(outcome, AssayError) and None not in outcome and job.reusable:
                self._cache.put(job.key, outcome)
                self._metrics.cache_bytes.set(self._cache.size_bytes)
        # Outside the lock, because a future runs its callbacks on this thread.
        if isinstance(outcome, AssayError):
            job.fail(outcome)
        else:
            job.finish(outcome)

    def _forward(self, batch: list[Job]) -> list[tuple[tuple[float, ...], ...]] | Fault:
        trunk = self._trunks[batch[0].task.trunk]
        started_s = time.monotonic()
        try:
            with torch.inference_mode():
                numbers = trunk.compute([job.task.sequence for job in batch])
        except Exception as error:
            # The trace is logged as text: a log handler that keeps the exception would keep its frames' tensors.
            _log.warning("a forward pass of %s failed\n%s", trunk.name, traceback.format_exc())
            return Fault.classify(error)
        self._computed += batch
        self._metrics.forward_s.labels(trunk.name).observe(time.monotonic() - started_s)
        self._metrics.batch_tokens.labels(trunk.name).observe(count_computed_tokens([job.waiting for job in batch]))
        return numbers


def _make_done_future(outputs: Outputs) -> "Future[Outputs]":
    future: Future[Outputs] = Future()
    future.set_result(outputs)
    return future


def _make_device_error() -> ForwardFailed:
    return ForwardFailed("the device has failed and the service is shutting down")
