"""Keep computed logits by everything that decides them, up to a number of bytes; the least recently used go first.

A cached logit is always right, because a logit depends on nothing else. Signals whose invariance was not shown by the
test at start are not cached (scoring-traps 19).
"""

import hashlib
from array import array
from collections import OrderedDict

from assay_service.scoring.layout import TokenSequence

# Logits of one sequence by every signal of a trunk, in their order. There is one for each step that the signal scores,
# and for some heads their spread. None where one of them is not finite.
Outputs = tuple[tuple[float, ...] | None, ...]

# Bytes of an entry in CPython: key (65), two tuples (48 each), and a place in an OrderedDict. 330 were measured;
# rounded up.
ENTRY_BYTES = 380
# Bytes of each number in it: float (24), and its place in a tuple (8); with what the allocator adds, 34 were measured.
NUMBER_BYTES = 36


def compute_key(identity: str, sequence: TokenSequence) -> bytes:
    """Return the SHA-256, 32 bytes, of everything that decides a logit.

    Prompt, completion, truncation and finish reason are all in the ids, the boundary and the spans that heads read.
    So are the way of reading, and the position at which the second segment begins.

    Args:
        identity: fingerprint of everything that decides the logits of the trunk besides the sequence.
        sequence: token ids with boundary, spans that heads read, and second segment.
    """
    second = -1 if sequence.second_segment is None else sequence.second_segment
    gate = -1 if sequence.gate is None else sequence.gate
    spans = [place for span in (sequence.score, *sequence.later_steps) for place in (span.start, span.end)]
    # The numbers have a fixed width and each variable part but the last follows its length, so no two sequences give
    # the same bytes.
    numbers = array("q", (sequence.boundary, second, gate, sequence.predicts, len(spans), *spans, *sequence.ids))
    return hashlib.sha256(f"{identity}\n".encode() + numbers.tobytes()).digest()


class ResultCache:
    """A least-recently-used cache of logits. It is not safe for concurrent use.

    Args:
        max_bytes: size limit, counted by `count_bytes`; beyond it the least recently used are removed.

    Attributes:
        size_bytes: size of the cache, counted by `count_bytes`.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.size_bytes = 0
        self._outputs: OrderedDict[bytes, Outputs] = OrderedDict()

    def get(self, key: bytes) -> Outputs | None:
        """Return the logits of a key and mark it as used, or None if it is not cached."""
        if key not in self._outputs:
            return None
        self._outputs.move_to_end(key)
        return self._outputs[key]

    def put(self, key: bytes, outputs: Outputs) -> None:
        """Add the logits of a key, and remove the least recently used beyond the size limit."""
        if key in self._outputs:
            self.size_bytes -= count_bytes(self._outputs.pop(key))
        self._outputs[key] = outputs
        self.size_bytes += count_bytes(outputs)
        while self.size_bytes > self._max_bytes:
            _, removed = self._outputs.popitem(last=False)
            self.size_bytes -= count_bytes(removed)


def count_bytes(outputs: Outputs) -> int:
    """Return the bytes of a cache entry with these logits, about."""
    return ENTRY_BYTES + NUMBER_BYTES * sum(len(numbers or ()) for numbers in outputs)
