"""Simulate one replica: the service's own queue, plan and cache, with measured times in place of a model.

What may wait, what runs next and what is kept are the decisions of `assay_service.engine`, in simulated time.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import simpy

from assay_service.engine.admission import QueueLimits, Terms
from assay_service.engine.backlog import Backlog
from assay_service.engine.cache import ENTRY_BYTES, NUMBER_BYTES, ResultCache
from assay_service.engine.plan import Waiting, count_computed_tokens
from benchmarks.capacity.speed import Speed
from benchmarks.capacity.traffic import Ask, Part

Steps: TypeAlias = Generator[simpy.Event, Any, None]

TRUNK = "model"


@dataclass(eq=False, slots=True)
class Job:
    """A part in a replica; several requests may wait for it.

    Attributes:
        part: completions that are computed together.
        waiting: the view of the job that the service's planning works on.
        cost: number of tokens that are computed for it.
        since_s: time at which it was submitted.
        done: event with the value True when it was computed, and False if it is lost.
        waiters: number of requests that wait for it.
    """

    part: Part
    waiting: Waiting
    cost: int
    since_s: float
    done: simpy.Event
    waiters: int = 0


@dataclass(slots=True)
class Counters:
    """What a replica has done; `saved` tokens were not computed because a prompt was shared.

    Attributes:
        passes: number of forward passes.
        computed_tokens: number of tokens that were computed.
        unshared_tokens: number of tokens that the same sequences would have without shared prompts.
        hits: number of items that were cached, waiting or running.
        misses: number of items that were new.
        busy_s: seconds in which it worked.
        wait_s: sum of the seconds that items waited.
        waited: number of items in this sum.
    """

    passes: int = 0
    computed_tokens: int = 0
    unshared_tokens: int = 0
    hits: int = 0
    misses: int = 0
    busy_s: float = 0.0
    wait_s: float = 0.0
    waited: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """What decides how a replica works; the defaults are those of the service.

    Attributes:
        speed: measured times.
        limits: limits of the queue.
        max_batch_tokens: most tokens of a forward pass.
        cache_bytes: size of the cache.
        shares_prompts: True if a prompt is computed once for the completions of a pass.
    """

    speed: Speed
    limits: QueueLimits = field(default_factory=lambda: QueueLimits(max_wait_s=3.0))
    max_batch_tokens: int = 4096
    cache_bytes: int = 64 * 2**20
    shares_prompts: bool = True


class Replica:
    """One replica in simulated time.

    Args:
        env: SimPy's environment, whose unit is a second.
        name: name, which decides the prompts that it gets.
        settings: times, limits and cache.
        slowness: factor of all its times.

    Attributes:
        counters: counts of its work.
        lost: True once it has failed.
    """

    def __init__(self, env: simpy.Environment, name: str, settings: ReplicaSettings, slowness: float = 1.0) -> None:
        self.name = name
        self.counters = Counters()
        self.lost = False
        self._env = env
        self._settings = settings
        self._slowness = slowness
        self._backlog: Backlog[Job] = Backlog(settings.limits, settings.max_batch_tokens)
        self._cache = ResultCache(settings.cache_bytes)
        self._unfinished: dict[bytes, Job] = {}
        self._around_s = 0.0  # work beside passes that is not done yet
        self._changed = env.event()
        env.process(self._work())

    @property
    def queue_tokens(self) -> int:
        """Return the number of tokens that wait."""
        return self._backlog.queue.tokens

    def compute_around_s(self, ask: Ask) -> float:
        """Return the seconds that a request takes beside forward passes."""
        return self._settings.speed.compute_around_s(ask.items) * self._slowness

    def submit(self, ask: Ask, deadline_s: float) -> list[Job]:
        """Queue what is not cached of a request, and return the jobs that it waits for.

        Args:
            ask: the request.
            deadline_s: time at which its client gives up.

        Raises:
            ServingError: the queue refuses it (see `Backlog.add`).
        """
        now_s, terms = self._env.now, Terms(deadline_s=deadline_s)
        # As in the service, a full queue refuses a request before it is known what is cached.
        self._backlog.forget(self._backlog.expect(terms, 0, ask.items, now_s), ask.items)
        jobs, new, hits = self._find_jobs(ask)
        waiting = [job for job in jobs if job in new or job in self._backlog.queue]
        if waiting:
            self._backlog.add(terms, waiting, 0, now_s)
        self._unfinished |= {job.part.key: job for job in new}
        self.counters.hits += hits
        self.counters.misses += sum(job.part.items for job in new)
        self._around_s += self._settings.speed.compute_around_s(ask.items)
        for job in jobs:
            job.waiters += 1
        self._wake()
        return jobs

    def abandon(self, jobs: list[Job]) -> None:
        """Remove the jobs of a request whose client has left, except those that run or that others wait for."""
        for job in jobs:
            job.waiters -= 1
            if not job.waiters and job in self._backlog.queue:
                self._backlog.queue.drop([job])
                del self._unfinished[job.part.key]

    def fail(self) -> None:
        """Lose the replica with all that it has not finished."""
        self.lost = True
        self._backlog.queue.clear()
        unfinished, self._unfinished = list(self._unfinished.values()), {}
        for job in unfinished:
            job.done.succeed(False)
        self._wake()

    def _find_jobs(self, ask: Ask) -> tuple[list[Job], list[Job], int]:
        """Return the jobs that give what is not cached, those that are new, and the number of other items."""
        jobs: dict[Job, None] = {}
        new: dict[bytes, Job] = {}
        hits = 0
        for part in ask.parts:
            if self._cache.get(part.key) is not None:
                hits += part.items
                continue
            job = self._unfinished.get(part.key, new.get(part.key))
            if job is None:
                job = new[part.key] = self._make_job(ask, part)
            else:
                hits += part.items
            jobs[job] = None
        return list(jobs), list(new.values()), hits

    def _make_job(self, ask: Ask, part: Part) -> Job:
        if self._settings.shares_prompts:
            waiting = Waiting(TRUNK, ask.key.encode(), ask.prompt_tokens, part.tokens)
        else:
            waiting = Waiting(TRUNK, None, 0, part.tokens + part.items * ask.prompt_tokens)
        cost = part.tokens + part.items * ask.prompt_tokens
        return Job(part, waiting, cost, self._env.now, self._env.event())

    def _wake(self) -> None:
        if not self._changed.triggered:
            self._changed.succeed()

    def _work(self) -> Steps:
        while not self.lost:
            if not self._backlog.queue and not self._around_s:
                self._changed = self._env.event()
                yield self._changed
                continue
            yield from self._run_pass(self._backlog.take() if self._backlog.queue else [])

    def _run_pass(self, batch: list[Job]) -> Steps:
        """Do what is to be done beside passes, then compute a batch, which may be empty."""
        started_s = self._env.now
        around_s, self._around_s = self._around_s * self._slowness, 0.0
        tokens = count_computed_tokens([job.waiting for job in batch])
        forward_s = self._settings.speed.compute_forward_s(tokens) * self._slowness if batch else 0.0
        yield self._env.timeout(around_s + forward_s)
        if self.lost:
            return
        self._count(batch, tokens, started_s, around_s + forward_s)
        for job in batch:
            del self._unfinished[job.part.key]
            self._cache.put(job.part.key, (make_entry(job.part.items),))
            job.done.succeed(True)
        if batch:
            self._backlog.finish_pass(batch, around_s + forward_s, self._env.now)

    def _count(self, batch: list[Job], tokens: int, started_s: float, seconds: float) -> None:
        counters = self.counters
        counters.busy_s += seconds
        if not batch:
            return
        items = sum(job.part.items for job in batch)
        counters.passes += 1
        counters.computed_tokens += tokens
        counters.unshared_tokens += sum(
            job.waiting.own_tokens + job.part.items * job.waiting.prompt_tokens for job in batch
        )
        counters.wait_s += sum((started_s - job.since_s) * job.part.items for job in batch)
        counters.waited += items


def make_entry(items: int) -> tuple[float, ...]:
    """Return numbers that take as many bytes in the service's cache as the scores of so many items."""
    bytes_of_all = items * (ENTRY_BYTES + NUMBER_BYTES)
    return (0.0,) * max(1, round((bytes_of_all - ENTRY_BYTES) / NUMBER_BYTES))
