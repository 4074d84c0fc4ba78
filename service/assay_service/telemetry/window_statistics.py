"""Compute what a window of scores shows: their correlation with the length, and their drift; pure."""

import math
import statistics
from bisect import bisect_right
from collections.abc import Sequence

# Below these numbers of scores chance alone gives large values.
CORRELATION_SCORES = 100
DRIFT_SCORES = 500
# Added to each bin, so that an empty one does not make the index infinite (the prior of Jeffreys).
_PRIOR = 0.5


def compute_correlation(logits: Sequence[float], lengths: Sequence[float]) -> float | None:
    """Return Pearson's correlation of logits and lengths.

    Args:
        logits: logits of one signal.
        lengths: number of completion tokens of each.

    Returns:
        None for fewer than `CORRELATION_SCORES`, or if one of the two does not vary.
    """
    if len(logits) < CORRELATION_SCORES:
        return None
    try:
        return statistics.correlation(logits, lengths)
    except statistics.StatisticsError:  # one of them is constant
        return None


def compute_psi(logits: Sequence[float], edges: Sequence[float], reference: Sequence[int]) -> float | None:
    """Return the population stability index of logits against a reference histogram ([PSI]).

    Without drift it is about (k + 1)·(1/n + 1/m) for k bins between edges, n logits and m reference logits.

    Args:
        logits: logits of one signal.
        edges: increasing bounds of the bins.
        reference: number of reference logits below the first edge, in each bin, and from the last edge on.

    Returns:
        None for fewer than `DRIFT_SCORES`.
    """
    if len(logits) < DRIFT_SCORES:
        return None
    counts = [0] * len(reference)
    for logit in logits:
        counts[bisect_right(edges, logit)] += 1
    total, expected = len(logits) + _PRIOR * len(counts), sum(reference) + _PRIOR * len(counts)
    shares = [((n + _PRIOR) / total, (m + _PRIOR) / expected) for n, m in zip(counts, reference, strict=True)]
    return sum((now - before) * math.log(now / before) for now, before in shares)
