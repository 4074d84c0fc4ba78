"""What runs next: nothing lost, repeated, over budget or starved."""

from hypothesis import given
from hypothesis import strategies as st

from assay_service.engine.plan import Waiting, choose_next_batch, cut_turns

PROMPTS = [None, b"p", b"q", b"r"]
LIMIT = 100


@st.composite
def sequences(draw: st.DrawFn) -> Waiting:
    prompt = draw(st.sampled_from(PROMPTS))
    # As in a row: equal prompts have equal lengths.
    prompt_tokens = 0 if prompt is None else {b"p": 10, b"q": 40, b"r": 90}[prompt]
    return Waiting(draw(st.sampled_from(["a", "b"])), prompt, prompt_tokens, draw(st.integers(1, 120)))


def computed(chosen: list[Waiting]) -> int:
    return sum(w.own_tokens for w in chosen) + sum(n for _, n in {(w.prompt, w.prompt_tokens) for w in chosen})


waiting = st.lists(sequences(), max_size=40)


@given(waiting)
def test_the_first_runs_with_others_of_its_signal_within_the_budget(queue: list[Waiting]) -> None:
    chosen = choose_next_batch(queue, LIMIT)
    assert bool(chosen) == bool(queue)
    assert len(set(chosen)) == len(chosen)
    if queue:
        assert chosen == sorted(chosen)
        assert chosen[0] == 0
        assert {queue[i].trunk for i in chosen} == {queue[0].trunk}
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
    sixteen = [Waiting("a", b"q", 40, 3)] * 16
    assert len(choose_next_batch(sixteen, 40 + 16 * 3)) == 16
    assert len(choose_next_batch(sixteen, 40 + 16 * 3 - 1)) == 15


@given(waiting)
def test_turns_have_every_sequence_within_the_limit(request: list[Waiting]) -> None:
    turns = cut_turns(request, LIMIT)
    assert sum(map(len, turns)) == len(request)
    start = 0
    for turn in turns:
        sequences = request[start : start + len(turn)]
        prompts = {(w.trunk, w.prompt): w.prompt_tokens for w in sequences}
        assert sum(turn) == sum(prompts.values()) + sum(w.own_tokens for w in sequences)
        assert sum(turn) <= LIMIT or len(turn) == 1
        start += len(turn)


def test_a_prompt_is_counted_once_in_each_turn() -> None:
    assert cut_turns([Waiting("a", b"q", 40, 20)] * 5, 100) == [[60, 20, 20], [60, 20]]
    assert cut_turns([Waiting("a", b"q", 40, 20), Waiting("b", b"q", 40, 20)], 200) == [[60, 60]]
    assert cut_turns([Waiting("a", None, 0, 150)] * 2, 100) == [[150], [150]]
    assert cut_turns([], 100) == []
