"""Represent a sequence on its way through the engine, and the requests that wait for its logits."""

import hashlib
from array import array
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from assay_service.engine.cache import Outputs, compute_key
from assay_service.engine.plan import Waiting
from assay_service.errors import AssayError
from assay_service.scoring.layout import TokenSequence
from assay_service.scoring.trunk import Trunk
from assay_service.telemetry.timings import Timings


@dataclass(frozen=True, slots=True)
class Task:
    """One sequence to be scored by all signals of one trunk.

    Attributes:
        trunk: the trunk.
        sequence: the sequence.
        identity: fingerprint of everything that decides the logits besides the sequence. None for a trunk whose
            invariance was not shown: its logits are neither cached nor shared between requests.
    """

    trunk: Trunk
    sequence: TokenSequence
    identity: str | None


class Job:
    """A task in the engine; several requests may wait for its logits.

    Args:
        task: the sequence to score and the trunk that scores it.
        now_s: time of submission on the monotonic clock, in seconds.
        is_reusable: False keeps other requests from joining the job, and its logits from the cache.

    Attributes:
        key: bytes that are equal for jobs with the same logits.
        reusable: True if the logits may be cached.
        tokens: number of tokens of the sequence.
        cost: number of tokens that are computed for it; a prompt counts for one of the sequences that share it.
        waiting: the view of the job that `plan` works on.
        timings: the times of the requests that wait for it.
    """

    def __init__(self, task: Task, now_s: float, *, is_reusable: bool) -> None:
        identity = task.identity if is_reusable else None
        shares_prompt = task.trunk.model.shares_prompts
        self.task = task
        self.since_s = now_s
        self.reusable = identity is not None
        # Without an identity the key is unique to this object, so that no other job can equal it.
        self.key = compute_key(identity, task.sequence) if identity is not None else id(self).to_bytes(8, "big")
        self.tokens = len(task.sequence.ids)
        prompt_tokens = task.sequence.boundary if shares_prompt else 0
        # Planning compares prompts for every sequence in the queue, and a hash compares faster than ids.
        prompt = hashlib.sha256(array("q", task.sequence.prompt).tobytes()).digest() if shares_prompt else None
        self.waiting = Waiting(task.trunk, prompt, prompt_tokens, self.tokens - prompt_tokens)
        self.cost = self.tokens
        self._waiters: list[Future[Outputs]] = []
        self.timings: list[Timings] = []

    @property
    def abandoned(self) -> bool:
        """Return True if all requests that waited for the job were cancelled."""
        return all(future.cancelled() for future in self._waiters)

    def subscribe(self, timings: Timings, on_cancel: Callable[["Job"], None]) -> "Future[Outputs]":
        """Return a future for one more request that waits; call it before the job is finished.

        Args:
            timings: times of the request, to which the passes of the job are added.
            on_cancel: callback, called with the job when the future is cancelled.
        """
        future: Future[Outputs] = Future()
        self._waiters.append(future)
        self.timings.append(timings)
        future.add_done_callback(lambda done: on_cancel(self) if done.cancelled() else None)
        return future

    def finish(self, outputs: Outputs) -> None:
        """Finish the job with the logits of its signals."""
        for future in self._waiters:
            # A client that has left has cancelled its future, and a result for it would raise an error here.
            if future.set_running_or_notify_cancel():
                future.set_result(outputs)

    def fail(self, error: AssayError) -> None:
        """Finish the job with an error."""
        for future in self._waiters:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)


def add_pass(batch: Iterable[Job], started_s: float, ended_s: float) -> None:
    """Add a forward pass, from `started_s` to `ended_s`, to the times of all requests that wait for its jobs."""
    for job in batch:
        for timings in job.timings:
            timings.add_pass(started_s, ended_s)


def make_done_future(outputs: Outputs) -> "Future[Outputs]":
    """Return a future that has its result already, for logits that are cached."""
    future: Future[Outputs] = Future()
    future.set_result(outputs)
    return future
