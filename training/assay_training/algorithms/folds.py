"""Groups to folds, by hash: the same group is in the same part on every machine, whatever else is in the data."""

import hashlib

DEV = -1


def fold_of(group: str, *, folds: int, dev_share: float, seed: int) -> int:
    """The fold in whose test part `group` is, or `DEV` for the development part.

    Args:
        group: the split key.
        folds: number of folds.
        dev_share: share of groups in the development part.
        seed: changes the assignment.

    Returns:
        0 .. folds - 1, or `DEV`.
    """
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    if int.from_bytes(digest[:8], "big") / 2**64 < dev_share:
        return DEV
    return int.from_bytes(digest[8:16], "big") % folds
