"""Groups to parts, by hash: the same group is in the same part on every machine, whatever else is in the data."""

import hashlib

HELD_OUT = -1


def fold_of(group: str, *, folds: int, held_out: float, seed: int) -> int:
    """The fold in whose test part `group` is, or `HELD_OUT`.

    Args:
        group: the split key.
        folds: number of folds; 1 for none.
        held_out: share of the groups that is in no fold.
        seed: changes the assignment.

    Returns:
        0 .. folds - 1, or `HELD_OUT`.
    """
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    if int.from_bytes(digest[:8], "big") / 2**64 < held_out:
        return HELD_OUT
    return int.from_bytes(digest[8:16], "big") % folds
