"""Any order of arrivals, passes, departures and failures: the queue beside a model that only keeps sets."""

from collections import Counter
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from assay_service.engine.admission import TRUST_S, QueueLimits, Terms
from assay_service.engine.backlog import Backlog
from assay_service.engine.job import Job, Task
from assay_service.errors import DeadlineExceeded, Overloaded
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.trunk import Trunk

if TYPE_CHECKING:
    from assay_service.scoring.model import RewardModel

PASS_TOKENS = 40
RATE = 100.0  # tokens in a second of the machine's clock
CALLERS = ("x", "y", "z")
Sizes = list[int]


class Bare:
    """A model that never computes: the queue asks it only whether prompts are shared."""

    shares_prompts = False


TRUNK = Trunk("t", cast("RewardModel", Bare()), ("t",))


def make_job(number: int, tokens: int) -> Job:
    ids = (number, *range(tokens - 1))
    sequence = TokenSequence(ids=ids, boundary=0, score=Span(tokens - 1, tokens))
    return Job(Task(TRUNK, sequence, "identity"), 0.0, is_reusable=True)


class Queue(RuleBasedStateMachine):
    """A backlog with a clock of its own, and what must be in it."""

    @initialize(max_tokens=st.integers(60, 400), max_items=st.integers(5, 40), wait_s=st.integers(1, 8))
    def start(self, max_tokens: int, max_items: int, wait_s: int) -> None:
        self.limits = QueueLimits(float(wait_s), max_tokens, max_items)
        self.backlog: Backlog[Job] = Backlog(self.limits, PASS_TOKENS)
        self.now_s = 0.0
        self.requests: dict[int, list[Job]] = {}  # that were taken in, by number
        self.callers: dict[int, str] = {}
        self.waiting: dict[Job, int] = {}  # with the number of its request
        self.served: list[Job] = []
        self.made = 0
        # Of callers who have waited without a break since the counts were cleared.
        self.shares: Counter[str] = Counter()

    @rule(caller=st.sampled_from(CALLERS), sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8))
    def arrive(self, caller: str, sizes: Sizes) -> None:
        jobs = [make_job(1000 * self.made + place, size) for place, size in enumerate(sizes)]
        before, tokens = self.backlog.queue.tokens, sum(sizes)
        try:
            self.backlog.add(Terms(caller), jobs, 0, self.now_s)
        except Overloaded as error:
            # A refusal changes nothing, says when to come back, and is never one of an empty queue.
            assert self.backlog.queue.tokens == before > 0
            self.check_refusal(error)
            return
        # What was let in is within the limits, unless nothing waited.
        assert not before or before + tokens <= self.limits.max_tokens
        assert not before or len(self.waiting) + len(jobs) <= self.limits.max_items
        if not any(self.callers[number] == caller for number in self.waiting.values()):
            self.shares.clear()  # another set of callers shares from now on
        self.requests[self.made], self.callers[self.made] = jobs, caller
        self.waiting |= dict.fromkeys(jobs, self.made)
        self.made += 1

    def check_refusal(self, error: Overloaded) -> None:
        assert 1 <= error.retry_after_s <= 60
        assert error.reason in ("wait", "tokens", "items")

    @precondition(lambda self: self.now_s - self.backlog._measured_s < TRUST_S)
    @rule(caller=st.sampled_from(CALLERS), size=st.integers(1, 60))
    def arrive_too_late(self, caller: str, size: int) -> None:
        """A request that cannot be in time, by a speed measured lately, is refused before it costs anything."""
        left_s = size / RATE / 2
        before = self.backlog.queue.tokens
        with pytest.raises((Overloaded, DeadlineExceeded)):
            self.backlog.add(Terms(caller, deadline_s=self.now_s + left_s), [make_job(-1, size)], 0, self.now_s)
        assert self.backlog.queue.tokens == before

    @rule()
    def arrive_after_the_deadline(self) -> None:
        with pytest.raises(DeadlineExceeded):
            self.backlog.add(Terms("x", deadline_s=self.now_s), [make_job(-1, 1)], 0, self.now_s)

    @rule()
    def probe(self) -> None:
        """A probe is let in whatever waits, and waits for no line of requests."""
        job = make_job(-2 - len(self.served), 3)
        self.backlog.add(Terms("", exempt=True), [job], 0, self.now_s)
        passes = 0
        while job in self.backlog.queue:
            self.serve(skip=job)
            passes += 1
        # Each caller may have turns that have begun, in two lines, and one that is due as well.
        assert passes <= 3 * len(CALLERS) + 1

    @rule()
    def pass_once(self) -> None:
        self.serve()

    def serve(self, skip: Job | None = None) -> None:
        waited, callers = bool(len(self.backlog.queue)), {self.callers[n] for n in self.waiting.values()}
        batch = self.backlog.take()
        assert bool(batch) == waited
        assert len(set(batch)) == len(batch)
        assert sum(job.tokens for job in batch) <= PASS_TOKENS or len(batch) == 1
        for job in batch:
            if job is not skip:
                self.shares[self.callers[self.waiting.pop(job)]] += job.tokens
                self.served.append(job)
        seconds = sum(job.tokens for job in batch) / RATE
        self.now_s += seconds
        self.backlog.finish_pass(batch, seconds, self.now_s)
        if {self.callers[n] for n in self.waiting.values()} != callers:
            self.shares.clear()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """The client of a request goes away; what of it still waits is dropped, and nothing else."""
        number = data.draw(st.sampled_from(sorted(set(self.waiting.values()))))
        gone = [job for job, of in self.waiting.items() if of == number]
        assert self.backlog.queue.drop(gone) == sum(job.cost for job in gone)
        for job in gone:
            del self.waiting[job]
        self.shares.clear()

    @rule(seconds=st.floats(0.1, 300))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def nothing_is_lost_or_invented(self) -> None:
        listed = self.backlog.queue.list_next(10**9)
        assert len(listed) == len(set(listed)) == len(self.backlog.queue)
        assert set(listed) == set(self.waiting)
        assert not set(self.served) & set(self.waiting)
        assert len(self.served) == len(set(self.served))
        assert self.backlog.queue.tokens == sum(job.cost for job in self.waiting)

    @invariant()
    def waiting_callers_get_equal_shares(self) -> None:
        callers = {self.callers[n] for n in self.waiting.values()}
        if len(callers) > 1:
            got = [self.shares[caller] for caller in callers]
            # A turn that has begun is finished, and a sequence of 60 tokens is a turn of its own.
            assert max(got) - min(got) <= 4 * 60

    def teardown(self) -> None:
        """Everything that was let in and has not left is served in the end, each sequence once."""
        if not hasattr(self, "backlog"):
            return
        rest = set(self.waiting)
        while self.waiting:
            self.serve()
        assert rest <= set(self.served)


Queue.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestQueue = Queue.TestCase


SHORT = st.lists(st.integers(1, 10), min_size=1, max_size=4)  # at most one turn


@given(requests=st.lists(SHORT, min_size=1, max_size=12))
def test_every_pass_finishes_a_whole_request_of_one_caller(requests: list[Sizes]) -> None:
    """An overloaded service finishes requests, and does not begin all of them."""
    backlog: Backlog[Job] = Backlog(QueueLimits(), PASS_TOKENS)
    unfinished: list[set[Job]] = []
    for number, sizes in enumerate(requests):
        jobs = [make_job(1000 * number + place, size) for place, size in enumerate(sizes)]
        backlog.add(Terms("x"), jobs, 0, 0.0)
        unfinished.append(set(jobs))
    while batch := backlog.take():
        rest = [left for jobs in unfinished if (left := jobs - set(batch))]
        assert len(rest) < len(unfinished)
        unfinished = rest
    assert not unfinished
