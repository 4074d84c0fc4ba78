"""Which waiting sequences run together in the next forward. Pure: values in, values out; `now` is an argument."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

# A request's sequences fall due at this rate from its arrival. A huge request is thus owed a share and no more: the
# small ones that come later go ahead of what it is not owed yet, and it goes ahead of them with what is overdue.
OWED_TOKENS_PER_S = 1000.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A sequence in the queue, as far as planning cares.

    Attributes:
        signal: only sequences of one signal share a forward.
        prompt: equal for sequences whose prompt is computed once for all of them; None where nothing is shared.
        prompt_tokens: what is computed once; 0 where nothing is shared.
        own_tokens: what is computed for this sequence alone.
        due_s: when it should have run.
    """

    signal: str
    prompt: bytes | None
    prompt_tokens: int
    own_tokens: int
    due_s: float


def due_times(now_s: float, tokens: Sequence[int]) -> list[float]:
    """When the sequences of a request that arrives now fall due, given their tokens."""
    before = [0, *accumulate(tokens)][:-1]
    return [now_s + count / OWED_TOKENS_PER_S for count in before]


def next_batch(waiting: Sequence[Waiting], max_batch_tokens: int) -> list[int]:
    """Indices of the sequences that run next, the first due first.

    The one that is due first always runs, so nothing starves; others of its signal join it in the order they fall due,
    as long as the tokens that are then computed, a shared prompt counted once, stay within the limit. One that does not
    fit is passed over for one that does. A sequence longer than the limit runs alone.

    Args:
        waiting: the queue, in order of arrival.
        max_batch_tokens: tokens computed in one forward.

    Returns:
        Indices into `waiting`; empty only if `waiting` is.
    """
    order = sorted(range(len(waiting)), key=lambda i: waiting[i].due_s)
    chosen: list[int] = []
    prompts: set[bytes | None] = set()
    tokens = 0
    for index in order:
        candidate = waiting[index]
        if candidate.signal != waiting[order[0]].signal:
            continue
        cost = candidate.own_tokens + (0 if candidate.prompt in prompts else candidate.prompt_tokens)
        if chosen and tokens + cost > max_batch_tokens:
            continue
        chosen.append(index)
        prompts.add(candidate.prompt)
        tokens += cost
    return chosen
