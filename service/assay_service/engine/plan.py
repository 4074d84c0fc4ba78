"""Choose which waiting sequences run together in the next forward pass, and cut requests into turns.

All functions are pure: values in, values out.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """The properties of a sequence in the queue that planning needs.

    Attributes:
        trunk: the trunk, or whatever stands for it; only sequences of the same trunk share a forward pass.
        prompt: hash that is equal for sequences whose prompt is computed once for all; None where nothing is shared.
        prompt_tokens: number of tokens that are computed once for all; 0 where nothing is shared.
        own_tokens: number of tokens that are computed for this sequence alone.
    """

    trunk: Hashable
    prompt: bytes | None
    prompt_tokens: int
    own_tokens: int


def cut_turns(request: Sequence[Waiting], most_tokens: int) -> list[list[int]]:
    """Cut the sequences of a request into turns of bounded length, in their order.

    Args:
        request: sequences of one request.
        most_tokens: most computed tokens of a turn; a sequence that is longer has a turn of its own.

    Returns:
        For each turn, the computed tokens of each of its sequences. A prompt is counted for the first sequence of the
        turn that has it.
    """
    turns: list[list[int]] = []
    prompts: set[tuple[Hashable, bytes | None]] = set()
    tokens = 0
    for sequence in request:
        prompt = (sequence.trunk, sequence.prompt)
        cost = sequence.own_tokens + (0 if prompt in prompts else sequence.prompt_tokens)
        if not turns or tokens + cost > most_tokens:
            turns.append([])
            prompts.clear()
            tokens, cost = 0, sequence.own_tokens + sequence.prompt_tokens
        turns[-1].append(cost)
        prompts.add(prompt)
        tokens += cost
    return turns


def count_computed_tokens(batch: Sequence[Waiting]) -> int:
    """Return the number of tokens that a forward pass computes: each prompt once, and each sequence's own tokens."""
    prompts = {sequence.prompt: sequence.prompt_tokens for sequence in batch}
    return sum(prompts.values()) + sum(sequence.own_tokens for sequence in batch)


def choose_next_batch(waiting: Sequence[Waiting], max_batch_tokens: int) -> list[int]:
    """Return the indices of the sequences that run next, in their order.

    The first sequence always runs, so no sequence waits for ever. Others of its trunk join in their order, as long as
    the computed tokens stay within the limit. A shared prompt counts once. A sequence that does not fit is skipped for
    a later one that does. A sequence longer than the limit runs alone.

    Args:
        waiting: sequences in the order in which they shall run.
        max_batch_tokens: most tokens that one forward pass computes.

    Returns:
        Indices into `waiting`; empty only if `waiting` is empty.
    """
    chosen: list[int] = []
    prompts: set[bytes | None] = set()
    tokens = 0
    for index, candidate in enumerate(waiting):
        # One pass runs one base; the first sequence decides which.
        if candidate.trunk != waiting[0].trunk:
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
