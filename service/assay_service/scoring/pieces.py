"""Encode consecutive pieces of a text, and count the tokens up to the end of each. No side effects."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class EncodedPieces:
    """The token ids of consecutive pieces of a text.

    Attributes:
        ids: token ids.
        ends: number of tokens up to the end of each piece.
        merged: whether a token goes beyond the end of each piece.
    """

    ids: tuple[int, ...]
    ends: tuple[int, ...]
    merged: tuple[bool, ...]


def encode_pieces(encoder: Tokenizer, pieces: Sequence[str], *, apart: bool) -> EncodedPieces:
    """Return the ids of consecutive pieces of a text, without adding special tokens.

    Args:
        encoder: tokenizer.
        pieces: pieces, of which some may be empty.
        apart: True encodes each piece by itself, False the whole text.
    """
    if apart:
        parts = [encoder.encode(piece, add_special_tokens=False).ids for piece in pieces]
        ends = tuple(accumulate(map(len, parts)))
        return EncodedPieces(tuple(token for part in parts for token in part), ends, (False,) * len(pieces))
    if len(pieces) == 1:  # without offsets, which take longer than the ids
        ids = tuple(encoder.encode(pieces[0], add_special_tokens=False).ids)
        return EncodedPieces(ids, (len(ids),), (False,))
    encoding = encoder.encode("".join(pieces), add_special_tokens=False)
    offsets = encoding.offsets  # a property that builds the whole list at each access
    # Ends and not starts, because byte-level tokenizers leave the leading space out of a token's offsets.
    stops = [stop for _, stop in offsets]
    cuts = list(accumulate(map(len, pieces)))
    counts = [bisect_right(stops, cut) for cut in cuts]
    merged = tuple(count < len(stops) and offsets[count][0] < cut for count, cut in zip(counts, cuts, strict=True))
    return EncodedPieces(tuple(encoding.ids), tuple(counts), merged)
