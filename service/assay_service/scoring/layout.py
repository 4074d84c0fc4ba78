"""Sequences laid end to end in one row, with positions. Pure: ids in, tensors out.

There is no padding: a row of `T` tokens holds `n` sequences, and attention (see `attention.py`) never crosses a border.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate

import torch


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `[start, end)` of one sequence, counted from its own start. Never empty."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"a span must be non-empty and not negative, not [{self.start}, {self.end})")


@dataclass(frozen=True, slots=True)
class Sequence:
    """The ids of one item for one signal, and the span that its head reads."""

    ids: tuple[int, ...]
    score: Span

    def __post_init__(self) -> None:
        if self.score.end > len(self.ids):
            raise ValueError(f"score span ends at {self.score.end}, the sequence has {len(self.ids)} tokens")


@dataclass(frozen=True, slots=True)
class Layout:
    """A packed row.

    Attributes:
        ids: int64 `[1, T]`.
        positions: int64 `[1, T]`, counted from the start of each sequence.
        lengths: the `n` sequence lengths; they sum to `T`.
        spans: score spans in row coordinates, one for each sequence.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    lengths: tuple[int, ...]
    spans: tuple[Span, ...]


def pack(sequences: Seq[Sequence]) -> Layout:
    """Lays `sequences` end to end in the given order.

    Raises:
        ValueError: there are none.
    """
    if not sequences:
        raise ValueError("nothing to pack")
    lengths = tuple(len(sequence.ids) for sequence in sequences)
    starts = [0, *accumulate(lengths)][:-1]
    ids = [token for sequence in sequences for token in sequence.ids]
    positions = [position for length in lengths for position in range(length)]
    return Layout(
        ids=torch.tensor([ids], dtype=torch.int64),
        positions=torch.tensor([positions], dtype=torch.int64),
        lengths=lengths,
        spans=tuple(
            Span(start + sequence.score.start, start + sequence.score.end)
            for start, sequence in zip(starts, sequences, strict=True)
        ),
    )
