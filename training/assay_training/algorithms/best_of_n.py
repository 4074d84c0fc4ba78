"""What picking the best of N by one score does to another, without bias, from M >= N samples."""

import math

import numpy as np

from assay_training.algorithms.statistics import Floats


def chosen(scores: Floats, n: int) -> Floats:
    """The chance of each of M samples to be the best of n drawn without replacement; `[M]`, sums to 1.

    The k-th smallest score is the largest of n in C(k - 1, n - 1) of C(M, n) draws; samples with equal scores share
    (Nakano et al. 2021, WebGPT).

    Args:
        scores: `[M]`.
        n: at most M.
    """
    total = math.comb(len(scores), n)
    by_rank = np.array([math.comb(rank, n - 1) / total for rank in range(len(scores))])
    order = np.argsort(scores, kind="stable")
    values, group = np.unique(scores, return_inverse=True)
    shares = np.bincount(group[order], weights=by_rank, minlength=len(values)) / np.bincount(group)
    return np.asarray(shares[group], dtype=np.float64)


def expected(scores: Floats, gold: Floats, n: int) -> float:
    """The mean gold value of the best of n; both `[M]`."""
    return float(chosen(scores, n) @ gold)


def win_rate(scores: Floats, gold: Floats, n: int) -> float:
    """How often the best of n has a higher gold value than one more sample that it was not picked against.

    A tie is half a win. Without bias, as every opponent is left out of what is picked from.

    Args:
        scores: `[M]`.
        gold: `[M]`.
        n: less than M.
    """
    wins = 0.0
    for opponent in range(len(gold)):
        others = np.delete(np.arange(len(gold)), opponent)
        better = (np.sign(gold[others] - gold[opponent]) + 1) / 2
        wins += float(chosen(scores[others], n) @ better)
    return wins / len(gold)


def kl_bound(n: int) -> float:
    """At most this many nats lie between the best of n and the policy: ln n - (n - 1) / n."""
    return math.log(n) - (n - 1) / n
