"""Whose turn it is: whole requests, fair shares, nothing lost, and no request that waits for ever."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from assay_service.engine.fair_queue import FairQueue

TURN = 10  # most tokens of a turn


def add(queue: FairQueue[str], caller: str, name: str, *sizes: int) -> list[str]:
    """Adds a request with entries of these sizes, cut into turns, and returns the entries."""
    turns: list[list[tuple[str, int]]] = [[]]
    for number, size in enumerate(sizes):
        if turns[-1] and sum(tokens for _, tokens in turns[-1]) + size > TURN:
            turns.append([])
        turns[-1].append((f"{name}{number}", size))
    queue.add(caller, turns)
    return [entry for turn in turns for entry, _ in turn]


def serve(queue: FairQueue[str], tokens: int = TURN) -> list[str]:
    """Serves the entries that come next, up to so many tokens, as a forward pass does."""
    batch: list[str] = []
    left = tokens
    for entry in queue.list_next(tokens):
        if batch and queue._costs[entry] > left:
            continue
        batch.append(entry)
        left -= queue._costs[entry]
    queue.take(batch)
    return batch


def serve_all(queue: FairQueue[str], tokens: int = TURN) -> list[str]:
    order: list[str] = []
    while queue:
        order += serve(queue, tokens)
    return order


def test_requests_of_one_caller_are_finished_one_after_the_other() -> None:
    queue: FairQueue[str] = FairQueue()
    requests = [add(queue, "x", name, 3, 3, 3) for name in "abcd"]
    assert serve_all(queue, tokens=3) == [entry for request in requests for entry in request]


def test_a_pass_that_cuts_a_request_in_two_is_followed_by_its_rest() -> None:
    queue: FairQueue[str] = FairQueue()
    first, other = add(queue, "x", "a", 4, 4), add(queue, "y", "b", 4, 4)
    assert serve_all(queue, tokens=4) == [*first, *other]


def test_callers_get_the_same_number_of_tokens() -> None:
    """One with a hundred requests does not keep another one waiting who has five."""
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        add(queue, "many", f"m{number}-", 5)
    for number in range(5):
        add(queue, "few", f"f{number}-", 5)
    first = [entry for _ in range(5) for entry in serve(queue)]
    assert Counter(entry[0] for entry in first) == {"m": 5, "f": 5}


def test_a_caller_who_was_idle_does_not_catch_up() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(50):
        add(queue, "x", f"x{number}-", 5)
    for _ in range(20):
        serve(queue)
    for number in range(50):
        add(queue, "y", f"y{number}-", 5)
    assert Counter(entry[0] for _ in range(4) for entry in serve(queue)) == {"x": 4, "y": 4}


def test_one_who_returns_after_each_answer_gets_no_more_than_a_share() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(200):
        add(queue, "waits", f"w{number}-", 2)
    served: Counter[str] = Counter()
    for number in range(40):
        if not any(entry.startswith("r") for entry in queue.list_next(10_000)):
            add(queue, "returns", f"r{number}-", 10)
        for entry in serve(queue):
            served[entry[0]] += 10 if entry[0] == "r" else 2
    assert abs(served["r"] - served["w"]) <= 2 * TURN


def test_a_small_request_does_not_wait_for_the_whole_of_a_large_one() -> None:
    queue: FairQueue[str] = FairQueue()
    add(queue, "x", "large", *[5] * 1000)
    serve(queue)
    small = add(queue, "x", "small", 5)
    assert small[0] in [*serve(queue), *serve(queue)]


def test_a_large_request_gets_half_beside_a_stream_of_small_ones() -> None:
    queue: FairQueue[str] = FairQueue()
    add(queue, "x", "large", *[5] * 200)
    served: Counter[str] = Counter()
    for number in range(40):
        for part in range(4):  # twice as many as can be served
            add(queue, "x", f"small{number}-{part}-", 5)
        served.update(entry[0] for entry in serve(queue))
    assert 35 <= served["l"] <= 45


def test_of_two_large_requests_one_is_finished_first() -> None:
    queue: FairQueue[str] = FairQueue()
    first, second = add(queue, "x", "a", *[5] * 10), add(queue, "x", "b", *[5] * 10)
    assert serve_all(queue) == [*first, *second]


def test_an_entry_that_a_small_request_waits_for_as_well_is_served_for_that_one() -> None:
    queue: FairQueue[str] = FairQueue()
    large = add(queue, "x", "large", *[5] * 100)
    queue.add("x", [[(large[-1], 5)]])
    assert len(queue) == 100
    assert queue.tokens == 500
    assert large[-1] in [*serve(queue), *serve(queue)]
    assert large[-1] not in queue


def test_the_tokens_ahead_of_a_request() -> None:
    queue: FairQueue[str] = FairQueue()
    assert queue.count_ahead("x", 8, is_long=False) == 0
    add(queue, "x", "a", 5, 5)
    assert queue.count_ahead("x", 8, is_long=False) == 10
    add(queue, "x", "large", *[5] * 100)
    assert queue.count_ahead("x", 8, is_long=False) == 10 + 18
    # Another caller waits for as much of these as it is served itself.
    assert queue.count_ahead("y", 8, is_long=False) == 8
    assert queue.count_ahead("y", 1000, is_long=True) == 510


class Machine(RuleBasedStateMachine):
    """A queue beside a plain list of the entries that must be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[str] = FairQueue()
        self.waiting: dict[str, int] = {}
        self.added = 0
        self.arrived: dict[str, int] = {}
        self.passes: Counter[str] = Counter()

    @rule(caller=st.sampled_from("xyz"), sizes=st.lists(st.integers(1, 15), min_size=1, max_size=8))
    def add_request(self, caller: str, sizes: list[int]) -> None:
        entries = add(self.queue, caller, f"{self.added}-", *sizes)
        self.waiting |= dict(zip(entries, sizes, strict=True))
        self.added += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), caller=st.sampled_from("xyz"))
    def join(self, data: st.DataObject, caller: str) -> None:
        entry = data.draw(st.sampled_from(list(self.waiting)))
        self.queue.add(caller, [[(entry, data.draw(st.integers(1, 15)))]])

    @rule(tokens=st.integers(1, 30))
    def serve_some(self, tokens: int) -> None:
        before = dict(self.waiting)
        batch = serve(self.queue, tokens)
        assert bool(batch) == bool(before)
        assert len(set(batch)) == len(batch)
        for entry in batch:
            del self.waiting[entry]
        for entry in self.waiting:
            self.passes[entry] += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.lists(st.sampled_from(list(self.waiting)), unique=True))
        assert self.queue.drop(gone) == sum(self.waiting.pop(entry) for entry in gone)

    @rule()
    def fail(self) -> None:
        self.queue.clear()
        self.waiting.clear()

    @invariant()
    def nothing_is_lost_or_invented(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert self.queue.tokens == sum(self.waiting.values())
        listed = self.queue.list_next(10**9)
        assert sorted(listed) == sorted(self.waiting)
        assert all(entry in self.queue for entry in listed)

    @invariant()
    def the_head_of_a_longer_list_is_the_shorter_list(self) -> None:
        whole = self.queue.list_next(10**9)
        head = self.queue.list_next(10)
        assert whole[: len(head)] == head
        assert sum(self.waiting[entry] for entry in head) >= min(10, self.queue.tokens)

    @invariant()
    def the_lines_hold_what_waits(self) -> None:
        tokens = sum(known.tokens for known in self.queue._callers.values())
        assert tokens >= self.queue.tokens or not self.waiting
        assert all(turn.waiting for turn in self.queue._begun)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase
