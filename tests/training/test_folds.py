"""Folds: the same on every machine, of the right size, and no group in two parts."""

from collections import Counter

from assay_training.algorithms.folds import HELD_OUT, assign_fold


def folds(seed: int, groups: list[str], *, held_out: float = 0.1) -> list[int]:
    return [assign_fold(group, folds=5, held_out=held_out, seed=seed) for group in groups]


def test_the_assignment_is_fixed_for_ever() -> None:
    """Literals: a change moves examples between the development part and the test parts of published numbers."""
    groups = list("abcdefghijklmnopqrst")
    assert folds(0, groups) == [1, 3, 0, 0, 2, 3, 0, -1, 3, 3, 0, 0, 4, 2, 0, 2, 1, 4, 2, 1]
    assert folds(7, groups) == [0, 2, -1, 3, 3, 3, 0, 2, 4, 3, 3, 1, 4, 4, 4, 0, 4, 3, 0, 4]


def test_parts_have_about_their_share() -> None:
    """10 000 groups: three standard deviations are 90 groups of the development part, 115 of a fold."""
    sizes = Counter(folds(7, [f"group {i}" for i in range(10_000)]))
    assert set(sizes) == {HELD_OUT, 0, 1, 2, 3, 4}
    assert abs(sizes[HELD_OUT] - 1000) < 90
    assert all(abs(sizes[fold] - 1800) < 115 for fold in range(5))


def test_a_groups_fold_depends_on_nothing_but_itself_and_the_seed() -> None:
    groups = [f"group {i}" for i in range(200)]
    assert folds(7, groups[::-1]) == folds(7, groups)[::-1]
    assert folds(7, groups) != folds(8, groups)


def test_a_larger_development_part_takes_from_the_folds_and_moves_nobody_else() -> None:
    groups = [f"group {i}" for i in range(500)]
    small, large = folds(7, groups), folds(7, groups, held_out=0.3)
    assert all(after in (before, HELD_OUT) for before, after in zip(small, large, strict=True))
    assert large.count(HELD_OUT) > small.count(HELD_OUT)
