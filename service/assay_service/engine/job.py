"""A sequence on its way through the engine, and those who wait for its logit."""

import hashlib
import math
from array import array
from concurrent.futures import Future
from dataclasses import dataclass, replace

from assay_service.engine.cache import key_of
from assay_service.engine.plan import Waiting
from assay_service.errors import AssayError
from assay_service.scoring.layout import TokenSequence


@dataclass(frozen=True, slots=True)
class Task:
    """One sequence to be scored by one signal."""

    signal: str
    sequence: TokenSequence


class Job:
    """A task in the engine; several requests may wait for it.

    Args:
        task: what to score.
        identity: all that decides the logit besides the sequence; None for a job that nobody else may join.
        now_s: when it was submitted.
        shares_prompt: whether its prompt is computed once for all that have it.

    Attributes:
        key: equal for jobs that give the same logit.
        reusable: whether its logit may be remembered.
        waiting: what planning knows of it.
    """

    def __init__(self, task: Task, identity: str | None, now_s: float, *, shares_prompt: bool) -> None:
        self.task = task
        self.since_s = now_s
        self.reusable = identity is not None
        self.key = key_of(identity, task.sequence) if identity is not None else id(self).to_bytes(8, "big")
        self.tokens = len(task.sequence.ids)
        prompt_tokens = task.sequence.boundary if shares_prompt else 0
        prompt = hashlib.sha256(array("q", task.sequence.prompt).tobytes()).digest() if shares_prompt else None
        self.waiting = Waiting(task.signal, prompt, prompt_tokens, self.tokens - prompt_tokens, math.inf)
        self._waiters: list[Future[float]] = []

    def schedule(self, due: float) -> None:
        """It falls due at `due`, or at an earlier time that was said before."""
        self.waiting = replace(self.waiting, due=min(due, self.waiting.due))

    @property
    def abandoned(self) -> bool:
        """Whether all who waited for it have left."""
        return all(future.cancelled() for future in self._waiters)

    def subscribe(self) -> "Future[float]":
        """A future for one more who waits; before the job is finished."""
        future: Future[float] = Future()
        self._waiters.append(future)
        return future

    def give(self, logit: float) -> None:
        """Finishes the job with a logit."""
        for future in self._waiters:
            if future.set_running_or_notify_cancel():
                future.set_result(logit)

    def fail(self, error: AssayError) -> None:
        """Finishes the job with an error."""
        for future in self._waiters:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
