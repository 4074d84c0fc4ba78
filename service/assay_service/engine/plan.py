"""Choose which waiting sequences run together in the next forward pass.

All functions are pure: values in, values out. The clock is an argument.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Waiting:
    """The properties of a sequence in the queue that planning needs.

    Attributes:
        trunk: name of the trunk; only sequences of the same trunk share a forward pass.
        prompt: hash that is equal for sequences whose prompt is computed once for all; None where nothing is shared.
        prompt_tokens: number of tokens that are computed once for all; 0 where nothing is shared.
        own_tokens: number of tokens that are computed for this sequence alone.
        due: time at which it should run, on a clock that counts the tokens that the engine has served.
    """

    trunk: str
    prompt: bytes | None
    prompt_tokens: int
    own_tokens: int
    due: float


def compute_due_times(clock: float, tokens: Sequence[int]) -> list[float]:
    """Return the times at which the sequences of a new request fall due.

    A sequence falls due when the engine would start it if it served this request alone from now on. A huge request
    thus falls due bit by bit. Small requests that arrive later run before the part that is not due yet, and the huge
    request runs before those that arrive later still.

    Args:
        clock: number of tokens that the engine has served so far; the clock of a slow machine is slow.
        tokens: numbers of tokens of the request's sequences, in order.
    """
    return [clock + before for before in [0, *accumulate(tokens)][:-1]]


def count_computed_tokens(batch: Sequence[Waiting]) -> int:
    """Return the number of tokens that a forward pass computes: each prompt once, and each sequence's own tokens."""
    prompts = {sequence.prompt: sequence.prompt_tokens for sequence in batch}
    return sum(prompts.values()) + sum(sequence.own_tokens for sequence in batch)


def choose_next_batch(waiting: Sequence[Waiting], max_batch_tokens: int) -> list[int]:
    """Return the indices of the sequences that run next, in the order in which they fall due.

    The sequence that is due first always runs, so no sequence waits for ever. Others of its trunk join in the order
    in which they fall due, as long as the computed tokens stay within the limit. A shared prompt counts once. A
    sequence that does not fit is skipped for a later one that does. A sequence longer than the limit runs alone.

    Args:
        waiting: the queue, in order of arrival.
        max_batch_tokens: most tokens that one forward pass computes.

    Returns:
        Indices into `waiting`; empty only if `waiting` is empty.
    """
    # Sorting is stable: sequences that fall due at the same time keep their order of arrival.
    order = sorted(range(len(waiting)), key=lambda i: waiting[i].due)
    chosen: list[int] = []
    prompts: set[bytes | None] = set()
    tokens = 0
    for index in order:
        candidate = waiting[index]
        # One pass runs one base; the sequence that is due first decides which.
        if candidate.trunk != waiting[order[0]].trunk:
            continue
        cost = candidate.own_tokens + (0 if candidate.prompt in prompts else candidate.prompt_tokens)
        # The first one always runs: it may be larger than the limit, and would wait for ever.
        if chosen and tokens + cost > max_batch_tokens:
            continue
        chosen.append(index)
        # A prompt costs once in a pass, so that its other completions come cheaper.
        prompts.add(candidate.prompt)
        tokens += cost
    return chosen
