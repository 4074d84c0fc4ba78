"""Which waiting sequences run together in the next forward. Pure: values in, indices out."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """A sequence in the queue, as far as planning cares.

    Attributes:
        signal: only sequences of one signal share a forward.
        tokens: its length.
    """

    signal: str
    tokens: int


def next_batch(waiting: Sequence[Waiting], max_batch_tokens: int) -> list[int]:
    """Indices of the sequences that run next, in the order they came.

    The oldest sequence always runs, so nothing starves; those of its signal that came after it join while the tokens
    fit. A sequence longer than the limit runs alone.

    Args:
        waiting: the queue, oldest first.
        max_batch_tokens: tokens in one forward.

    Returns:
        Rising indices into `waiting`; empty only if `waiting` is.
    """
    chosen: list[int] = []
    tokens = 0
    for index, candidate in enumerate(waiting):
        if candidate.signal != waiting[0].signal:
            continue
        if chosen and tokens + candidate.tokens > max_batch_tokens:
            break
        chosen.append(index)
        tokens += candidate.tokens
    return chosen
