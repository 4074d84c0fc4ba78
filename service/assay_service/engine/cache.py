"""Keep computed logits by everything that decides them, up to a number of bytes; the least recently used go first.

A cached logit is always right, because a logit depends on nothing else. Signals whose invariance was not shown by the
test at start are not cached (scoring-traps 19).
"""

import hashlib
from array import array
from collections import OrderedDict

from assay_service.scoring.layout import TokenSequence

# Bytes of an entry in CPython: key (65), float (24), and a place in an OrderedDict. 260 were measured; rounded up.
ENTRY_BYTES = 300


def compute_key(identity: str, sequence: TokenSequence) -> bytes:
    """Return the SHA-256, 32 bytes, of everything that decides a logit.

    Prompt, completion, truncation and finish reason are all in the ids, the boundary, the score span and the position
    at which the second segment begins.

    Args:
        identity: fingerprint of everything that decides a logit of the signal besides the sequence.
        sequence: token ids with boundary, score span and second segment.
    """
    second = -1 if sequence.second_segment is None else sequence.second_segment
    # The numbers have a fixed width and the variable part comes last, so no two sequences give the same bytes.
    numbers = array("q", (sequence.boundary, sequence.score.start, sequence.score.end, second, *sequence.ids))
    return hashlib.sha256(f"{identity}\n".encode() + numbers.tobytes()).digest()


class ResultCache:
    """A least-recently-used cache of logits. It is not safe for concurrent use.

    Args:
        max_bytes: size limit, counted as `ENTRY_BYTES` for each entry; beyond it the least recently used are removed.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_entries = max_bytes // ENTRY_BYTES
        self._logits: OrderedDict[bytes, float] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """Return the size of the cache, counted as `ENTRY_BYTES` for each entry."""
        return len(self._logits) * ENTRY_BYTES

    def get(self, key: bytes) -> float | None:
        """Return the logit of a key and mark it as used, or None if it is not cached."""
        if key not in self._logits:
            return None
        self._logits.move_to_end(key)
        return self._logits[key]

    def put(self, key: bytes, logit: float) -> None:
        """Add a logit, and remove the least recently used beyond the size limit."""
        self._logits[key] = logit
        self._logits.move_to_end(key)
        while len(self._logits) > self._max_entries:
            self._logits.popitem(last=False)
