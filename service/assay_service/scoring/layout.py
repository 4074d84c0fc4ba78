"""Lay token sequences end to end in one row, with equal prompts stored once. Ids in, tensors out, no side effects.

A row holds *segments*. A prompt that several completions share is one segment, and each completion is a segment that
attends to its prompt as well (see `kernels/`). Where nothing is shared, as in encoders, a sequence is one segment.
Only the end of the row is padded, to a multiple of `STEP_TOKENS`; sequences stand side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

# Rows come in multiples of this. Elementwise kernels then have no remainder that is computed another way. There are few
# row counts for which matrix products must be checked (see `kernels/row_invariant.py`).
STEP_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens `[start, end)`; never empty."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"a span must be non-empty and not negative, not [{self.start}, {self.end})")

    @property
    def tokens(self) -> int:
        """Return the number of tokens."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """The token ids of one item for one signal, with its boundary and the span that its head reads.

    Attributes:
        ids: token ids of prompt and completion.
        boundary: number of prompt tokens.
        score: score span, counted from the start of the sequence; of the first step if steps are scored.
        second_segment: index of the first token of type 1, the second text of a pair; None if all tokens have type 0.
        later_steps: score spans of the steps after the first one; empty unless steps are scored.
        gate: index of the token whose hidden state a gating network reads; None if the head has none.
        predicts: whether the head reads every token of the score span by itself, and predicts the token after it.
    """

    ids: tuple[int, ...]
    boundary: int
    score: Span
    second_segment: int | None = None
    later_steps: tuple[Span, ...] = ()
    gate: int | None = None
    predicts: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.boundary <= len(self.ids):
            raise ValueError(f"boundary {self.boundary} lies outside the sequence of {len(self.ids)} tokens")
        end = max(span.end for span in self.reads) + self.predicts
        if end > len(self.ids):
            raise ValueError(f"a score span ends at {end}, the sequence has {len(self.ids)} tokens")
        if self.second_segment is not None and not 0 <= self.second_segment < len(self.ids):
            raise ValueError(f"second segment {self.second_segment} lies outside the sequence")

    @property
    def prompt(self) -> tuple[int, ...]:
        """Return the ids before the boundary."""
        return self.ids[: self.boundary]

    @property
    def score_spans(self) -> tuple[Span, ...]:
        """Return the score spans: one, or one for each step."""
        return (self.score, *self.later_steps)

    @property
    def score_reads(self) -> tuple[Span, ...]:
        """Return the spans that each give numbers of the head: the score spans, or each token of one by itself."""
        each = range(self.score.start, self.score.end)
        return tuple(Span(place, place + 1) for place in each) if self.predicts else self.score_spans

    @property
    def reads(self) -> tuple[Span, ...]:
        """Return all spans that heads read: those of the score, then the token of the gate."""
        gate = () if self.gate is None else (Span(self.gate, self.gate + 1),)
        return (*self.score_reads, *gate)

    @property
    def targets(self) -> tuple[int, ...]:
        """Return the ids that the head predicts, one for each token of the score span; empty if it predicts none."""
        return self.ids[self.score.start + 1 : self.score.end + 1] if self.predicts else ()

    @property
    def types(self) -> list[int]:
        """Return the token type of every id: 0, and 1 from `second_segment` on."""
        zeros = len(self.ids) if self.second_segment is None else self.second_segment
        return [0] * zeros + [1] * (len(self.ids) - zeros)


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of a row that attend to themselves and to those of their prefix.

    Attributes:
        own: span of these tokens in the row.
        prefix: span of the prompt before them in the row; None if they are the first of their sequence.
    """

    own: Span
    prefix: Span | None


@dataclass(frozen=True, slots=True)
class Layout:
    """A packed row.

    Attributes:
        ids: token ids, int64 `[1, T]`, `T` a multiple of `STEP_TOKENS`; the padding at the end is 0.
        positions: positions, int64 `[1, T]`, counted from the start of each sequence; -1 for an uncounted id.
        types: token types, int64 `[1, T]`; the padding has type 0.
        segments: segments that cover the row from its start without gaps; the padding belongs to none.
        spans: spans that heads read, of one sequence after the other (`TokenSequence.reads`), in one or two pieces.
        tokens: number of tokens without the padding.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    types: torch.Tensor
    segments: tuple[Segment, ...]
    spans: tuple[tuple[Span, ...], ...]
    tokens: int


def pack(sequences: Sequence[TokenSequence], *, share_prompts: bool, uncounted_id: int | None = None) -> Layout:
    """Lay `sequences` end to end in the given order.

    Where prompts may be shared, a sequence is always split in two at its boundary, even if nobody shares its prompt.
    The computation of an item then depends on the item only, not on its neighbors.

    Args:
        sequences: sequences to lay out.
        share_prompts: whether equal prompts are laid out once (right for causal models only).
        uncounted_id: token id that positions do not count, as the pad of RoBERTa; None to count every token.

    Raises:
        ValueError: `sequences` is empty.
    """
    if not sequences:
        raise ValueError("a row needs at least one sequence")
    row = _Row(uncounted_id)
    added = [row.add(sequence, sequence.boundary if share_prompts else 0) for sequence in sequences]
    tokens = len(row.ids)
    fill = [0] * (-tokens % STEP_TOKENS)  # id 0 exists in every vocabulary, and nobody reads these tokens
    return Layout(
        ids=torch.tensor([row.ids + fill], dtype=torch.int64),
        positions=torch.tensor([row.positions + fill], dtype=torch.int64),
        types=torch.tensor([row.types + fill], dtype=torch.int64),
        segments=tuple(row.segments),
        spans=tuple(span for spans in added for span in spans),
        tokens=tokens,
    )


def select_read_tokens(row: Layout) -> tuple[torch.Tensor, tuple[tuple[Span, ...], ...]]:
    """Return the positions of a row that heads read, and the score spans among them.

    The steps after the attention of the last layer are needed for these tokens alone.

    Returns:
        Positions in the row, int64 `[R]`, `R` a multiple of `STEP_TOKENS`; and the spans, counted in that order.
    """
    starts: dict[Span, int] = {}
    index: list[int] = []
    for piece in (piece for pieces in row.spans for piece in pieces):
        if piece not in starts:
            starts[piece] = len(index)
            index += range(piece.start, piece.end)
    spans = tuple(tuple(Span(starts[p], starts[p] + p.tokens) for p in pieces) for pieces in row.spans)
    # Reading the first token again keeps the shapes of the last layer to multiples of STEP_TOKENS.
    fill = [0] * (-len(index) % STEP_TOKENS)
    return torch.tensor(index + fill, dtype=torch.int64), spans


@dataclass(slots=True)
class _Row:
    """A row during construction."""

    uncounted_id: int | None = None
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    prompts: dict[tuple[tuple[int, ...], tuple[int, ...]], Span] = field(default_factory=dict)

    def add(self, sequence: TokenSequence, boundary: int) -> list[tuple[Span, ...]]:
        """Lay out the parts that the row does not have yet, and return the pieces of each span that heads read."""
        types, positions = sequence.types, _count_positions(sequence.ids, self.uncounted_id)
        # Equal ids with other token types have other hidden states, so both make the key.
        prompt = sequence.ids[:boundary], tuple(types[:boundary])
        prefix = self.prompts.get(prompt)
        if boundary and prefix is None:
            prefix = self.prompts[prompt] = self._append(*prompt, positions[:boundary], None)
        parts = [] if prefix is None else [(Span(0, boundary), prefix.start)]
        if boundary < len(sequence.ids):
            own = self._append(sequence.ids[boundary:], types[boundary:], positions[boundary:], prefix)
            parts.append((Span(boundary, len(sequence.ids)), own.start))
        mapped = [[_map_piece(span, part, start) for part, start in parts] for span in sequence.reads]
        return [tuple(piece for piece in pieces if piece is not None) for pieces in mapped]

    def _append(
        self, ids: tuple[int, ...], types: Sequence[int], positions: Sequence[int], prefix: Span | None
    ) -> Span:
        """Append one segment and return its span in the row."""
        own = Span(len(self.ids), len(self.ids) + len(ids))
        self.ids += ids
        self.types += types
        self.positions += positions
        self.segments.append(Segment(own, prefix))
        return own


def _count_positions(ids: Sequence[int], uncounted_id: int | None) -> Sequence[int]:
    """Return the position of every token: the number of counted tokens before it, or -1 for an uncounted one."""
    if uncounted_id is None or uncounted_id not in ids:
        return range(len(ids))
    counts = accumulate(int(token != uncounted_id) for token in ids)
    return [-1 if token == uncounted_id else count - 1 for token, count in zip(ids, counts, strict=True)]


def _map_piece(score: Span, part: Span, start: int) -> Span | None:
    """Return the span of the row in which `score` covers `part` of its sequence, which lies at `start`; None if empty.

    Args:
        score: score span, counted from the start of the sequence.
        part: part of the sequence, counted in the same way.
        start: place of the part in the row.
    """
    first, last = max(score.start, part.start), min(score.end, part.end)
    return Span(start + first - part.start, start + last - part.start) if first < last else None
