"""Find growth of memory in samples of a process's resident size: the slope after a warm-up, by least squares."""

from collections.abc import Sequence
from statistics import linear_regression

MIB = 2**20
WARM_UP = 1 / 3  # of the time, in which caches fill and the allocator takes its pools


def fit_growth(samples: Sequence[tuple[float, int]]) -> float:
    """Return the growth in MiB per minute after the warm-up.

    Args:
        samples: seconds since the start, ascending, and bytes at that time.
    """
    start_s, end_s = samples[0][0], samples[-1][0]
    kept = [(t, size) for t, size in samples if t >= start_s + WARM_UP * (end_s - start_s)]
    per_s = linear_regression([t for t, _ in kept], [size for _, size in kept]).slope
    return per_s * 60 / MIB
