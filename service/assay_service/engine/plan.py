"""Which waiting sequences run together in the next forward. Pure: values in, values out; `clock` is an argument."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Waiting:
    """A sequence in the queue, as far as planning cares.

    Attributes:
        signal: only sequences of one signal share a forward.
        prompt: equal for sequences whose prompt is computed once for all of them; None where nothing is shared.
        prompt_tokens: what is computed once; 0 where nothing is shared.
        own_tokens: what is computed for this sequence alone.
        due: when it should run, in tokens that the engine has served.
    """

    signal: str
    prompt: bytes | None
    prompt_tokens: int
    own_tokens: int
    due: float


def due_times(clock: float, tokens: Sequence[int]) -> list[float]:
    """When the sequences of a request that arrives at `clock` fall due, given their tokens.

    Each when the request would have got to it if it had been served alone from now on. A huge request thus falls due
    bit by bit: small ones that come later go ahead of what is not due yet, and it goes ahead of those that come after.

    Args:
        clock: tokens that the engine has served so far; a slow machine has slow time.
        tokens: of the request's sequences, in order.
    """
    return [clock + before for before in [0, *accumulate(tokens)][:-1]]


def computed_tokens(batch: Sequence[Waiting]) -> int:
    """Tokens that a forward of `batch` computes: each prompt once, and what stands behind it."""
    prompts = {sequence.prompt: sequence.prompt_tokens for sequence in batch}
    return sum(prompts.values()) + sum(sequence.own_tokens for sequence in batch)


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
    order = sorted(range(len(waiting)), key=lambda i: waiting[i].due)
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
