"""Logits that were already computed, by what they were computed from; bounded in bytes, least recently used first.

Sound because a logit depends on nothing else: signals whose invariance is not proved are not cached (scoring-traps 19).
"""

import hashlib
from array import array
from collections import OrderedDict

from assay_service.scoring.layout import TokenSequence

# What an entry takes in CPython: key (65), float (24), and its place in an OrderedDict; measured 260, rounded up.
ENTRY_BYTES = 300


def key_of(identity: str, sequence: TokenSequence) -> bytes:
    """What decides a logit, as 32 bytes.

    Prompt, completion, truncation and finish reason are all in the ids, the boundary, the score span and the place
    where the second segment begins.

    Args:
        identity: all that decides a logit of the signal besides the sequence.
        sequence: ids, boundary, score span and second segment.
    """
    second = -1 if sequence.second_segment is None else sequence.second_segment
    numbers = array("q", (sequence.boundary, sequence.score.start, sequence.score.end, second, *sequence.ids))
    return hashlib.sha256(f"{identity}\n".encode() + numbers.tobytes()).digest()


class ResultCache:
    """Logits by key. Not safe for concurrent use.

    Args:
        max_bytes: beyond it the least recently used are forgotten.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_entries = max_bytes // ENTRY_BYTES
        self._logits: OrderedDict[bytes, float] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """What it holds, counted as `ENTRY_BYTES` each."""
        return len(self._logits) * ENTRY_BYTES

    def get(self, key: bytes) -> float | None:
        """The logit, or None."""
        if key not in self._logits:
            return None
        self._logits.move_to_end(key)
        return self._logits[key]

    def put(self, key: bytes, logit: float) -> None:
        """Remembers a logit."""
        self._logits[key] = logit
        self._logits.move_to_end(key)
        while len(self._logits) > self._max_entries:
            self._logits.popitem(last=False)
