"""Hold what is computed or is being computed, so that no sequence is computed twice; no clock, no lock."""

from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass

from assay_service.engine.cache import Outputs, ResultCache
from assay_service.engine.job import Job
from assay_service.telemetry.metrics import Lookup, Metrics


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of the sequences of one request.

    Attributes:
        jobs: the cached logits of each sequence, or the job that will give them.
        new: the jobs that nobody has asked for before.
        tokens: result of the lookup of each sequence, and the number of its tokens.
    """

    jobs: list[Job | Outputs]
    new: Collection[Job]
    tokens: list[tuple[Lookup, int]]

    @property
    def cached(self) -> int:
        """Return the number of sequences whose logits were cached."""
        return sum(result == "hit" for result, _ in self.tokens)


class Known:
    """The cached logits, and the jobs that wait or run.

    Args:
        cache_bytes: size of the cache of logits.
        metrics: the counters of lookups.
    """

    def __init__(self, cache_bytes: int, metrics: Metrics) -> None:
        self._cache = ResultCache(cache_bytes)
        self._metrics = metrics
        # Jobs stay here while they run, so that a request which comes then still joins them. In order of submission.
        self._unfinished: dict[bytes, Job] = {}

    def find(self, candidates: Sequence[Job]) -> Found:
        """Return what is known of the sequences of a request; nothing is added."""
        jobs: list[Job | Outputs] = []
        tokens: list[tuple[Lookup, int]] = []
        new: dict[bytes, Job] = {}
        for job in candidates:
            if job.reusable and (cached := self._cache.get(job.key)) is not None:
                jobs.append(cached)
                tokens.append(("hit", job.tokens))
                continue
            # A request may hold the same sequence twice, so its own new jobs count as well.
            earlier = self._unfinished.get(job.key, new.get(job.key))
            jobs.append(new.setdefault(job.key, job) if earlier is None else earlier)
            tokens.append(("miss" if earlier is None else "in_flight", job.tokens))
        return Found(jobs, dict.fromkeys(new.values()), tokens)

    def find_cached(self, keys: Sequence[tuple[bytes, int]]) -> list[Outputs] | None:
        """Return the cached logits of all keys and count them, or None if one is not cached.

        Args:
            keys: the key of each sequence, and its number of tokens.
        """
        outputs = [self._cache.get(key) for key, _ in keys]
        cached = [each for each in outputs if each is not None]
        if len(cached) < len(keys):
            return None
        self._metrics.count_lookups([("hit", tokens) for _, tokens in keys])
        return cached

    def add(self, found: Found) -> None:
        """Add the new jobs of a request that was admitted, and count how its sequences were found."""
        self._unfinished |= {job.key: job for job in found.new}
        self._metrics.count_lookups(found.tokens)

    def remove(self, job: Job) -> None:
        """Remove a job that is finished, or that nobody waits for any more."""
        del self._unfinished[job.key]

    def remove_all(self) -> list[Job]:
        """Remove all jobs and return them; the cache stays."""
        unfinished, self._unfinished = list(self._unfinished.values()), {}
        return unfinished

    def keep(self, job: Job, outputs: Outputs) -> None:
        """Cache the logits of a job, if they may be reused and all are finite."""
        if job.reusable and None not in outputs:
            self._cache.put(job.key, outputs)
            self._metrics.cache_bytes.set(self._cache.size_bytes)

    def find_oldest(self, waiting: Container[Job]) -> Job | None:
        """Return the job of `waiting` that was submitted first; None if there is none."""
        # Only jobs of the running batch can come before it.
        return next((job for job in self._unfinished.values() if job in waiting), None)
