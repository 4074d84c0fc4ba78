"""What runs next: nothing lost, repeated, over budget or starved."""

from hypothesis import given
from hypothesis import strategies as st

from assay_service.engine.plan import Waiting, choose_next_batch, compute_due_times

PROMPTS = [None, b"p", b"q", b"r"]
LIMIT = 100


@st.composite
def sequences(draw: st.DrawFn) -> Waiting:
    prompt = draw(st.sampled_from(PROMPTS))
    # As in a row: equal prompts have equal lengths.
    prompt_tokens = 0 if prompt is None else {b"p": 10, b"q": 40, b"r": 90}[prompt]
    return Waiting(
        draw(st.sampled_from(["a", "b"])), prompt, prompt_tokens, draw(st.integers(1, 120)), draw(st.floats(0, 9))
    )


def computed(chosen: list[Waiting]) -> int:
    return sum(w.own_tokens for w in chosen) + sum(n for _, n in {(w.prompt, w.prompt_tokens) for w in chosen})


waiting = st.lists(sequences(), max_size=40)


@given(waiting)
def test_the_first_due_runs_with_others_of_its_signal_within_the_budget(queue: list[Waiting]) -> None:
    chosen = choose_next_batch(queue, LIMIT)
    assert bool(chosen) == bool(queue)
    assert len(set(chosen)) == len(chosen)
    if queue:
        first = min(queue, key=lambda w: w.due)
        assert queue[chosen[0]] == first
        assert {queue[i].trunk for i in chosen} == {first.trunk}
        assert len(chosen) == 1 or computed([queue[i] for i in chosen]) <= LIMIT


@given(waiting)
def test_no_room_is_wasted(queue: list[Waiting]) -> None:
    chosen = choose_next_batch(queue, LIMIT)
    batch = [queue[i] for i in chosen]
    left = [w for i, w in enumerate(queue) if i not in chosen and w.trunk == batch[0].trunk]
    assert all(computed([*batch, w]) > LIMIT for w in left)


@given(waiting)
def test_a_queue_is_emptied_without_losing_or_repeating(queue: list[Waiting]) -> None:
    left = list(range(len(queue)))
    served: list[int] = []
    while left:
        chosen = {left[i] for i in choose_next_batch([queue[i] for i in left], LIMIT)}
        served += chosen
        left = [i for i in left if i not in chosen]
    assert sorted(served) == list(range(len(queue)))


def test_siblings_pay_for_their_prompt_once() -> None:
    sixteen = [Waiting("a", b"q", 40, 3, float(i)) for i in range(16)]
    assert len(choose_next_batch(sixteen, 40 + 16 * 3)) == 16
    assert len(choose_next_batch(sixteen, 40 + 16 * 3 - 1)) == 15


def test_a_small_request_waits_only_for_what_was_due_before_it() -> None:
    """A thousand sequences came first, of which ten have been served when a single one comes: it is next."""
    huge = [Waiting("a", None, 0, 100, due) for due in compute_due_times(0.0, [100] * 1000)][10:]
    (due,) = compute_due_times(1000.0, [100])
    order = choose_next_batch([*huge, Waiting("a", None, 0, 100, due)], 1_000_000)
    assert order.index(len(huge)) <= 1


def test_a_huge_request_gets_its_share_of_a_stream_of_small_ones() -> None:
    """Ten small ones come with every batch of twenty: half of the served ones are of the huge request."""
    huge = [Waiting("a", None, 0, 100, due) for due in compute_due_times(0.0, [100] * 500)]
    small: list[Waiting] = []
    clock, served = 0.0, 0
    for _ in range(20):
        small += [Waiting("a", None, 0, 100, due) for _ in range(20) for due in compute_due_times(clock, [100])]
        chosen = choose_next_batch([*huge, *small], 2000)
        taken = {i for i in chosen if i < len(huge)}
        served += len(taken)
        small = [w for i, w in enumerate(small, start=len(huge)) if i not in chosen]
        huge = [w for i, w in enumerate(huge) if i not in taken]
        clock += 100 * len(chosen)
    assert 100 <= served <= 300


def test_requests_fall_due_token_by_token() -> None:
    assert compute_due_times(5.0, [500, 1500, 1]) == [5.0, 505.0, 2005.0]
