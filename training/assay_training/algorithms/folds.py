"""Assign groups to folds by hash, so that the fold of a group depends on nothing but its name and the seed."""

import hashlib

HELD_OUT = -1


def assign_fold(group: str, *, folds: int, held_out: float, seed: int) -> int:
    """Return the fold that tests on `group`, or `HELD_OUT`.

    Args:
        group: split key; records with the same key are never split.
        folds: number of folds; 1 for no cross-validation.
        held_out: expected share of the groups in the held-out part, 0..1.
        seed: seed of the assignment.

    Returns:
        A fold in 0..folds − 1, or `HELD_OUT`.
    """
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    # Separate bytes decide the two questions, so the held-out part does not depend on the number of folds.
    if int.from_bytes(digest[:8], "big") / 2**64 < held_out:
        return HELD_OUT
    return int.from_bytes(digest[8:16], "big") % folds
