"""The bounded queue and the thread that runs the models.

All forwards happen on one thread, because switching adapters changes a base's state. A forward that raises is repeated
sequence by sequence, so that one bad sequence does not fail its neighbours; a logit that is not finite fails alone.
"""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from assay_service.engine.plan import Waiting, next_batch
from assay_service.errors import ForwardFailed, NotFinite, NotReady, Overloaded
from assay_service.metrics import Metrics
from assay_service.scoring import layout
from assay_service.scoring.model import RewardModel

RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to be scored by one signal; the future gives its logit."""

    signal: str
    sequence: layout.Sequence
    logit: "Future[float]" = field(default_factory=Future)
    since_s: float = field(default_factory=time.monotonic)

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return len(self.sequence.ids)


class Engine:
    """Scores sequences in batches made of whatever is waiting.

    Args:
        models: the model that holds each signal.
        max_batch_tokens: tokens in one forward.
        max_queue_tokens: tokens waiting before requests are refused.
        metrics: is told of every batch.
    """

    def __init__(
        self,
        models: Mapping[str, RewardModel],
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        metrics: Metrics,
    ) -> None:
        self._models = models
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._metrics = metrics
        self._queue: list[Job] = []
        self._queued_tokens = 0
        self._changed = threading.Condition()
        self._stopping = False
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
        """Whether the worker runs."""
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether new jobs are refused."""
        return self._stopping

    def since_success_s(self, signal: str) -> float:
        """Seconds since a forward of `signal` last gave a finite logit; infinite before the first."""
        return time.monotonic() - self._last_success_s[signal]

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues all `jobs`, or none.

        Raises:
            Overloaded: they do not fit in the queue.
            NotReady: the engine is stopping or its worker has ended.
        """
        tokens = sum(job.tokens for job in jobs)
        with self._changed:
            if self._stopping or not self.alive:
                raise NotReady("the service is shutting down")
            if self._queue and self._queued_tokens + tokens > self._max_queue_tokens:
                self._metrics.rejected.inc()
                raise Overloaded("too many tokens are waiting", retry_after_s=RETRY_AFTER_S)
            self._queue.extend(jobs)
            self._count(tokens)
            self._changed.notify_all()

    def _work(self) -> None:
        while batch := self._take():
            now = time.monotonic()
            for job in batch:
                self._metrics.queue_s.observe(now - job.since_s)
            self._run(batch)

    def _take(self) -> list[Job]:
        """Waits for jobs and takes the next batch out of the queue; empty when there will be no more."""
        with self._changed:
            while True:
                while not self._queue and not self._stopping:
                    self._changed.wait()
                chosen = next_batch([Waiting(job.signal, job.tokens) for job in self._queue], self._max_batch_tokens)
                taken = set(chosen)
                batch = [self._queue[i] for i in chosen]
                self._queue = [job for i, job in enumerate(self._queue) if i not in taken]
                self._count(-sum(job.tokens for job in batch))
                # Abandoned jobs are dropped before any work is done for them.
                live = [job for job in batch if job.logit.set_running_or_notify_cancel()]
                if live or not chosen:
                    return live

    def _count(self, tokens: int) -> None:
        self._queued_tokens += tokens
        self._metrics.queue_tokens.set(self._queued_tokens)

    def _run(self, batch: list[Job]) -> None:
        try:
            logits = self._forward(batch)
        except Exception as error:
            if len(batch) > 1:
                for job in batch:
                    self._run([job])
            else:
                batch[0].logit.set_exception(_forward_failed(error))
            return
        for job, logit in zip(batch, logits, strict=True):
            if math.isfinite(logit):
                self._last_success_s[job.signal] = time.monotonic()
                job.logit.set_result(logit)
            else:
                self._metrics.not_finite.labels(job.signal).inc()
                job.logit.set_exception(NotFinite("the model gave a logit that is not finite"))

    def _forward(self, batch: list[Job]) -> list[float]:
        signal = batch[0].signal
        started_s = time.monotonic()
        with torch.inference_mode():
            logits: list[float] = self._models[signal].logits([job.sequence for job in batch], signal).tolist()
        self._metrics.forward_s.labels(signal).observe(time.monotonic() - started_s)
        self._metrics.batch_tokens.labels(signal).observe(sum(job.tokens for job in batch))
        return logits


def _forward_failed(error: Exception) -> ForwardFailed:
    """Names the type only: a device's message may hold addresses."""
    failed = ForwardFailed(f"the forward failed with {type(error).__name__}")
    failed.__cause__ = error
    return failed
