"""Sequences laid end to end in one row, prompts once each, with positions. Pure: ids in, tensors out.

A row holds *segments*: a prompt that several completions share is one, and each completion is one that attends to its
prompt as well (see `attention.py`). Where nothing is shared, as in encoders, a sequence is one segment. Between
sequences there is no padding; at the end the row is filled up to a multiple of `STEP_TOKENS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

# Rows come in multiples of this: elementwise kernels then have no remainder that is computed another way, and the
# row counts that matrix products are checked for (see `rows.py`) are few.
STEP_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `[start, end)`. Never empty."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"a span must be non-empty and not negative, not [{self.start}, {self.end})")

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """The ids of one item for one signal, where its completion begins, and the span that its head reads.

    Attributes:
        ids: prompt and completion.
        boundary: number of prompt tokens.
        score: counted from the start of the sequence.
        second_segment: index of the first token of type 1, the second text of a pair; None where all have type 0.
    """

    ids: tuple[int, ...]
    boundary: int
    score: Span
    second_segment: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.boundary <= len(self.ids):
            raise ValueError(f"boundary {self.boundary} lies outside the sequence of {len(self.ids)} tokens")
        if self.score.end > len(self.ids):
            raise ValueError(f"score span ends at {self.score.end}, the sequence has {len(self.ids)} tokens")
        if self.second_segment is not None and not 0 <= self.second_segment < len(self.ids):
            raise ValueError(f"second segment {self.second_segment} lies outside the sequence")

    @property
    def prompt(self) -> tuple[int, ...]:
        """The ids before the boundary."""
        return self.ids[: self.boundary]

    @property
    def types(self) -> list[int]:
        """The token type of every id: 0, and 1 from `second_segment` on."""
        zeros = len(self.ids) if self.second_segment is None else self.second_segment
        return [0] * zeros + [1] * (len(self.ids) - zeros)


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of a row that attend to themselves, and to those of their prefix.

    Attributes:
        own: where they lie in the row.
        prefix: where the prompt before them lies in the row; None if they are the first of their sequence.
    """

    own: Span
    prefix: Span | None


@dataclass(frozen=True, slots=True)
class Layout:
    """A packed row.

    Attributes:
        ids: int64 `[1, T]`, `T` a multiple of `STEP_TOKENS`; what fills it up is 0.
        positions: int64 `[1, T]`, counted from the start of each sequence.
        types: int64 `[1, T]`, the token type of each; of what fills the row up, 0.
        segments: they cover the row from its start without gaps; what fills it up belongs to none.
        spans: for each sequence where its score span lies in the row, in one or two pieces.
        tokens: how many are computed: `T` without what fills it up.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    types: torch.Tensor
    segments: tuple[Segment, ...]
    spans: tuple[tuple[Span, ...], ...]
    tokens: int


def pack(sequences: Sequence[TokenSequence], *, share_prompts: bool) -> Layout:
    """Lays `sequences` end to end in the given order.

    A sequence is always cut in two at its boundary where prompts may be shared, also when nobody shares its prompt: how
    an item is computed is a property of the item and not of its neighbours.

    Args:
        sequences: what to lay out.
        share_prompts: equal prompts are laid out once (right for causal models only).

    Raises:
        ValueError: there are none.
    """
    if not sequences:
        raise ValueError("nothing to pack")
    row = _Row()
    spans = tuple(row.add(sequence, sequence.boundary if share_prompts else 0) for sequence in sequences)
    tokens = len(row.ids)
    fill = [0] * (-tokens % STEP_TOKENS)
    return Layout(
        ids=torch.tensor([row.ids + fill], dtype=torch.int64),
        positions=torch.tensor([row.positions + fill], dtype=torch.int64),
        types=torch.tensor([row.types + fill], dtype=torch.int64),
        segments=tuple(row.segments),
        spans=spans,
        tokens=tokens,
    )


def narrowed(row: Layout) -> tuple[torch.Tensor, tuple[tuple[Span, ...], ...]]:
    """The tokens of a row that heads read, and where the score spans lie among them.

    What comes after the attention of the last layer is needed for these alone.

    Returns:
        int64 `[R]`, places in the row, `R` a multiple of `STEP_TOKENS`; and the spans, counted in that order.
    """
    starts: dict[Span, int] = {}
    index: list[int] = []
    for piece in (piece for pieces in row.spans for piece in pieces):
        if piece not in starts:
            starts[piece] = len(index)
            index += range(piece.start, piece.end)
    spans = tuple(tuple(Span(starts[p], starts[p] + p.tokens) for p in pieces) for pieces in row.spans)
    fill = [0] * (-len(index) % STEP_TOKENS)
    return torch.tensor(index + fill, dtype=torch.int64), spans


@dataclass(slots=True)
class _Row:
    """A row being laid out."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    prompts: dict[tuple[tuple[int, ...], tuple[int, ...]], Span] = field(default_factory=dict)

    def add(self, sequence: TokenSequence, boundary: int) -> tuple[Span, ...]:
        """Lays out what is not there yet, and returns the pieces of the score span."""
        types = sequence.types
        prompt = sequence.ids[:boundary], tuple(types[:boundary])
        prefix = self.prompts.get(prompt)
        if boundary and prefix is None:
            prefix = self.prompts[prompt] = self._append(*prompt, 0, None)
        pieces = [] if prefix is None else [_piece(sequence.score, Span(0, boundary), prefix.start)]
        if boundary < len(sequence.ids):
            own = self._append(sequence.ids[boundary:], types[boundary:], boundary, prefix)
            pieces.append(_piece(sequence.score, Span(boundary, len(sequence.ids)), own.start))
        return tuple(piece for piece in pieces if piece is not None)

    def _append(self, ids: tuple[int, ...], types: Sequence[int], position: int, prefix: Span | None) -> Span:
        own = Span(len(self.ids), len(self.ids) + len(ids))
        self.ids += ids
        self.types += types
        self.positions += range(position, position + len(ids))
        self.segments.append(Segment(own, prefix))
        return own


def _piece(score: Span, part: Span, start: int) -> Span | None:
    """What `score` covers of `part` of its sequence, where that part lies at `start` in the row."""
    first, last = max(score.start, part.start), min(score.end, part.end)
    return Span(start + first - part.start, start + last - part.start) if first < last else None
