"""The bounded queue and the thread that runs the models.

All forwards happen on one thread, because switching adapters changes a base's state. What was computed is remembered,
and what is being computed is not computed twice. Faults: out of memory splits the batch once; a device that failed
computes nothing more; anything else is repeated sequence by sequence, so that one bad sequence does not fail its
neighbours; a logit that is not finite fails alone.
"""

import logging
import math
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import torch

from assay_service.engine.cache import ResultCache
from assay_service.engine.fault import Fault
from assay_service.engine.job import Job, Task
from assay_service.engine.plan import computed_tokens, due_times, next_batch
from assay_service.errors import AssayError, ForwardFailed, NotFinite, NotReady, Overloaded
from assay_service.metrics import Metrics
from assay_service.scoring.model import RewardModel

RETRY_AFTER_S = 1.0

_log = logging.getLogger("assay")


class Engine:
    """Scores sequences in batches made of whatever is waiting.

    Args:
        models: the model that holds each signal.
        identities: all that decides a logit besides its sequence, for signals whose invariance is proved; the others
            are neither cached nor computed once for two requests.
        max_batch_tokens: tokens computed in one forward.
        max_queue_tokens: tokens waiting before requests are refused.
        cache_bytes: of remembered logits; 0 also computes what two requests ask for twice.
        metrics: is told of every batch.
        on_failure: is called once, on the worker's thread, when the device has failed.
    """

    def __init__(
        self,
        models: Mapping[str, RewardModel],
        identities: Mapping[str, str],
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        cache_bytes: int,
        metrics: Metrics,
        on_failure: Callable[[], None],
    ) -> None:
        self._models = models
        self._identities = identities if cache_bytes else {}
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._cache = ResultCache(cache_bytes)
        self._metrics = metrics
        self._on_failure = on_failure
        self._queue: list[Job] = []
        self._known: dict[bytes, Job] = {}  # waiting or running
        self._queued_tokens = 0
        self._clock = 0  # tokens served so far, in which `plan` counts what is due
        self._changed = threading.Condition()
        self._stopping = False
        self._failed = False
        self._last_success_s = dict.fromkeys(models, -math.inf)
        self._thread = threading.Thread(target=self._work, name="assay-engine", daemon=True)

    def start(self) -> None:
        """Starts the worker."""
        self._thread.start()

    def stop(self) -> None:
        """Refuses new jobs, finishes those that wait, and returns when the worker has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the worker runs and its device works."""
        return self._thread.is_alive() and not self._failed

    @property
    def failed(self) -> bool:
        """Whether the device has failed; only a new process can help."""
        return self._failed

    @property
    def stopping(self) -> bool:
        """Whether new jobs are refused."""
        return self._stopping

    def since_success_s(self, signal: str) -> float:
        """Seconds since a forward of `signal` last gave a finite logit; infinite before the first."""
        return time.monotonic() - self._last_success_s[signal]

    def submit(self, tasks: Sequence[Task], *, fresh: bool = False) -> list["Future[float]"]:
        """Queues all `tasks`, or none.

        Args:
            tasks: what to score.
            fresh: compute them even if they are known.

        Returns:
            For each task a future that gives its logit or an `AssayError`. Cancelling all that wait for a sequence
            drops it before any work is done for it.

        Raises:
            Overloaded: they do not fit in the queue.
            NotReady: the engine is stopping or its worker has ended.
        """
        now_s = time.monotonic()
        candidates = [self._job(task, now_s, fresh=fresh) for task in tasks]  # hashes, so before the lock
        with self._changed:
            if self._stopping or not self._thread.is_alive():
                raise NotReady("the service is shutting down")
            jobs, new = self._known_or_new(candidates)
            tokens = sum(job.tokens for job in new)
            if new and self._queue and self._queued_tokens + tokens > self._max_queue_tokens:
                self._metrics.rejected.inc()
                raise Overloaded("too many tokens are waiting", retry_after_s=RETRY_AFTER_S)
            futures = [_answered(job) if isinstance(job, float) else job.subscribe() for job in jobs]
            self._enqueue(new)
        return futures

    def _job(self, task: Task, now_s: float, *, fresh: bool) -> Job:
        identity = None if fresh else self._identities.get(task.signal)
        return Job(task, identity, now_s, shares_prompt=self._models[task.signal].architecture.causal)

    def _known_or_new(self, candidates: Sequence[Job]) -> tuple[list[Job | float], list[Job]]:
        """For each job its logit, or the job that will give it; and those of the jobs that are new."""
        jobs: list[Job | float] = []
        new: dict[bytes, Job] = {}
        for job, due in zip(candidates, due_times(self._clock, [job.tokens for job in candidates]), strict=True):
            cached = self._cache.get(job.key) if job.reusable else None
            if cached is not None:
                jobs.append(cached)
                self._metrics.lookups.labels("hit").inc()
                continue
            known = self._known.get(job.key, new.get(job.key))
            self._metrics.lookups.labels("miss" if known is None else "in_flight").inc()
            serving = new.setdefault(job.key, job) if known is None else known
            serving.schedule(due)
            jobs.append(serving)
        return jobs, list(new.values())

    def _enqueue(self, new: Sequence[Job]) -> None:
        if self._failed:
            for job in new:
                job.fail(_ended())
            return
        self._queue.extend(new)
        self._known |= {job.key: job for job in new}
        self._count(sum(job.tokens for job in new))
        self._changed.notify_all()

    def _work(self) -> None:
        try:
            while batch := self._take():
                now_s = time.monotonic()
                for job in batch:
                    self._metrics.queue_s.observe(now_s - job.since_s)
                self._run(batch)
        except BaseException:  # a bug of ours: nobody may wait for ever
            _log.exception("the worker ends")
            self._fail()
            raise

    def _take(self) -> list[Job]:
        """Waits for jobs and takes the next batch out of the queue; empty when there will be no more."""
        while True:
            with self._changed:
                while not self._queue and not self._stopping:
                    self._changed.wait()
                self._drop([job for job in self._queue if job.abandoned])
                queue = list(self._queue)
                if not queue and self._stopping:
                    return []
            # Nobody else takes jobs out, so this needs no lock, and those who submit do not wait for it.
            batch = [queue[i] for i in next_batch([job.waiting for job in queue], self._max_batch_tokens)]
            with self._changed:
                self._remove(batch)
            if batch:
                return batch

    def _drop(self, jobs: Sequence[Job]) -> None:
        """Forgets jobs that nobody waits for any more, before any work is done for them."""
        self._remove(jobs)
        for job in jobs:
            del self._known[job.key]

    def _remove(self, jobs: Sequence[Job]) -> None:
        gone = {id(job) for job in jobs}
        self._queue = [job for job in self._queue if id(job) not in gone]
        self._count(-sum(job.tokens for job in jobs))

    def _count(self, tokens: int) -> None:
        self._queued_tokens += tokens
        self._metrics.queue_tokens.set(self._queued_tokens)

    def _run(self, batch: list[Job], *, split: bool = False) -> None:
        logits = self._forward(batch)
        if isinstance(logits, Fault):
            self._recover(batch, logits, split=split)
            return
        for job, logit in zip(batch, logits, strict=True):
            if math.isfinite(logit):
                self._last_success_s[job.task.signal] = time.monotonic()
                self._finish(job, logit)
            else:
                self._metrics.not_finite.labels(job.task.signal).inc()
                self._finish(job, NotFinite("the model gave a logit that is not finite"))

    def _recover(self, batch: list[Job], fault: Fault, *, split: bool) -> None:
        if fault.device:
            self._fail()
            return
        if len(batch) == 1 or (split and fault.out_of_memory):
            for job in batch:
                self._finish(job, fault.error())
            return
        parts = [[job] for job in batch]
        if fault.out_of_memory:
            self._metrics.out_of_memory.inc()
            parts = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        for part in parts:
            if not self._failed:
                self._run(part, split=split or fault.out_of_memory)

    def _fail(self) -> None:
        """After this nothing is computed any more; what is remembered is still answered."""
        with self._changed:
            self._failed = True
            unfinished, self._known = list(self._known.values()), {}
            self._queue = []
            self._count(-self._queued_tokens)
        for job in unfinished:
            job.fail(_ended())
        self._on_failure()

    def _finish(self, job: Job, outcome: float | AssayError) -> None:
        with self._changed:
            del self._known[job.key]
            if isinstance(outcome, float) and job.reusable:
                self._cache.put(job.key, outcome)
                self._metrics.cache_bytes.set(self._cache.size_bytes)
        if isinstance(outcome, float):
            job.give(outcome)
        else:
            job.fail(outcome)

    def _forward(self, batch: list[Job]) -> list[float] | Fault:
        signal = batch[0].task.signal
        started_s = time.monotonic()
        try:
            with torch.inference_mode():
                logits: list[float] = self._models[signal].logits([job.task.sequence for job in batch], signal).tolist()
        except Exception as error:
            # As text: a handler that keeps the exception would keep its frames' tensors.
            _log.warning("a forward of %s failed\n%s", signal, traceback.format_exc())
            return Fault.of(error)
        self._clock += sum(job.tokens for job in batch)
        self._metrics.forward_s.labels(signal).observe(time.monotonic() - started_s)
        self._metrics.batch_tokens.labels(signal).observe(computed_tokens([job.waiting for job in batch]))
        return logits


def _answered(logit: float) -> "Future[float]":
    future: Future[float] = Future()
    future.set_result(logit)
    return future


def _ended() -> ForwardFailed:
    return ForwardFailed("the device has failed and the service is ending")
