"""Hold the jobs that wait, and decide which requests may join them and which jobs run next; no clock, no lock."""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from assay_service.engine.admission import FIRST_PASSES, TRUST_S, Load, QueueLimits, Terms, find_refusal
from assay_service.engine.fair_queue import FairQueue
from assay_service.engine.plan import Waiting, choose_next_batch, cut_turns
from assay_service.engine.rate import DecayingRatio, DrainRate

# Passes whose sequences are considered for the next one: more would fill it no better, and take time to look at.
LOOKAHEAD_PASSES = 16
# Characters of requests over which the tokens per character are averaged.
TEXT_MEMORY_CHARS = 1e6


class HasCost(Hashable, Protocol):
    """A job as the queue sees it.

    Attributes:
        waiting: the properties that planning needs.
        cost: number of tokens that are computed for it.
    """

    waiting: Waiting
    cost: int


JobT = TypeVar("JobT", bound=HasCost)


class Backlog(Generic[JobT]):
    """The jobs that wait, those that run, and requests that will add jobs soon.

    Args:
        limits: limits beyond which requests are refused.
        max_batch_tokens: most tokens that one forward pass computes; also the most tokens of a turn.

    Attributes:
        queue: the jobs that wait.
        rate: the rate at which they are computed.
    """

    def __init__(self, limits: QueueLimits, max_batch_tokens: int) -> None:
        self.queue: FairQueue[JobT] = FairQueue()
        self.rate = DrainRate()
        self._limits = limits
        self._max_batch_tokens = max_batch_tokens
        self._measured_s = -math.inf
        self._running_tokens = 0
        self._expected_tokens, self._expected_items = 0.0, 0
        self._tokens_per_char = DecayingRatio(TEXT_MEMORY_CHARS)

    def expect(self, terms: Terms, chars: int, items: int, now_s: float) -> float:
        """Expect a request that is not rendered yet, so that its place in the queue is not promised twice.

        Args:
            terms: conditions of the request.
            chars: number of characters of its items.
            items: number of its sequences.
            now_s: time on the monotonic clock.

        Returns:
            The estimated tokens, for `forget`.

        Raises:
            Overloaded: the queue is full already, so that rendering the request would be in vain.
            DeadlineExceeded: the time of the request is over.
        """
        # Those that came earlier count as well, though they are not in the queue yet.
        self._check(terms, 0, items, self._expected_tokens, self._expected_items, now_s, is_long=False)
        tokens = chars * (self._tokens_per_char.value or 0.0)
        self._expected_tokens += tokens
        self._expected_items += items
        return tokens

    def forget(self, tokens: float, items: int) -> None:
        """Expect a request no longer, because it is added now or has failed."""
        self._expected_tokens -= tokens
        self._expected_items -= items

    def add(self, terms: Terms, jobs: Sequence[JobT], chars: int, now_s: float) -> None:
        """Add a request as a whole, or refuse it.

        Args:
            terms: conditions of the request.
            jobs: the different jobs that it waits for and that do not run yet; some may wait for others already.
            chars: number of characters of its items; 0 if it is not known.
            now_s: time on the monotonic clock.

        Raises:
            Overloaded: the request does not fit, or would be finished too late.
            DeadlineExceeded: the time of the request is over, or is too short for it.
        """
        costs = cut_turns([job.waiting for job in jobs], self._max_batch_tokens)
        tokens, new = sum(map(sum, costs)), [job for job in jobs if job not in self.queue]
        if new:
            self._check(terms, tokens, len(new), 0.0, 0, now_s, is_long=len(costs) > 1)
        for job, cost in zip(jobs, (cost for turn in costs for cost in turn), strict=True):
            job.cost = min(cost, job.cost)
        if chars:
            self._tokens_per_char.add(tokens, chars)
        rest = iter(jobs)
        self.queue.add(terms.caller, [[(next(rest), cost) for cost in turn] for turn in costs])

    def take(self) -> list[JobT]:
        """Remove the jobs of the next forward pass from the queue, and return them."""
        jobs = self.queue.list_next(LOOKAHEAD_PASSES * self._max_batch_tokens)
        batch = [jobs[i] for i in choose_next_batch([job.waiting for job in jobs], self._max_batch_tokens)]
        self._running_tokens = self.queue.take(batch)
        return batch

    def finish_pass(self, computed: Iterable[JobT], seconds: float, now_s: float) -> None:
        """Learn how fast the queue drains.

        Args:
            computed: jobs of the pass that were computed.
            seconds: time that the pass took.
            now_s: time on the monotonic clock at its end.
        """
        tokens = sum(job.cost for job in computed)
        if tokens and seconds > 0:
            full = len(self.queue) > 0 or tokens >= self._max_batch_tokens // 2
            if self.rate.add(tokens, seconds, full=full):
                self._measured_s = now_s
        self._running_tokens = 0

    def _check(
        self,
        terms: Terms,
        tokens: int,
        items: int,
        expected_tokens: float,
        expected_items: int,
        now_s: float,
        *,
        is_long: bool,
    ) -> None:
        if terms.exempt:
            return
        ahead_tokens = self.queue.count_ahead(terms.caller, tokens, is_long=is_long)
        load = Load(
            ahead_tokens=self._running_tokens + expected_tokens + ahead_tokens,
            waiting_tokens=expected_tokens + self.queue.tokens,
            waiting_items=expected_items + len(self.queue),
            tokens_per_s=self.rate.tokens_per_s,
            first_tokens=FIRST_PASSES * self._max_batch_tokens,
            is_measured=self.rate.is_measured,
            is_recent=self.rate.is_measured and now_s - self._measured_s < TRUST_S,
        )
        refusal = find_refusal(load, self._limits, tokens=tokens, items=items, left_s=terms.deadline_s - now_s)
        if refusal is not None:
            raise refusal
