"""Estimate best-of-N sampling without bias: the best of N by one score, judged by another.

Legend: `M` samples of one prompt, of which the estimators use all; `N <= M` of them compete. `scores` select,
`gold` judges. All arrays are float64 `[M]`.
"""

import math

import numpy as np
from jaxtyping import Float64

from assay_training.algorithms.statistics import Floats


def compute_selection_probabilities(scores: Float64[Floats, " M"], n: int) -> Float64[Floats, " M"]:
    """Return the probability that each sample is the best of n drawn without replacement.

    The sample of rank k (1..M, from the smallest score) is the largest in C(k − 1, n − 1) of C(M, n) draws
    ([WebGPT]). Samples with equal scores share their probability equally.

    Args:
        scores: scores that select, float64 `[M]`.
        n: number of samples that compete, 1..M.

    Returns:
        Probabilities, float64 `[M]`; they sum to 1.
    """
    total = math.comb(len(scores), n)
    by_rank = np.array([math.comb(rank, n - 1) / total for rank in range(len(scores))])
    order = np.argsort(scores, kind="stable")
    # Without sharing, the order of the samples would decide which one of equal scores is selected.
    values, group = np.unique(scores, return_inverse=True)
    shares = np.bincount(group[order], weights=by_rank, minlength=len(values)) / np.bincount(group)
    return np.asarray(shares[group], dtype=np.float64)


def compute_expected_gold(scores: Float64[Floats, " M"], gold: Float64[Floats, " M"], n: int) -> float:
    """Return the expected gold value of the best of n samples.

    Args:
        scores: scores that select, float64 `[M]`.
        gold: gold values of the same samples, float64 `[M]`.
        n: number of samples that compete, 1..M.
    """
    return float(compute_selection_probabilities(scores, n) @ gold)


def compute_win_rate(scores: Float64[Floats, " M"], gold: Float64[Floats, " M"], n: int) -> float:
    """Return the probability that the best of n has a higher gold value than one further sample.

    A tie counts as half a win. The estimate is unbiased, because the opponent never competes in the selection.

    Args:
        scores: scores that select, float64 `[M]`.
        gold: gold values of the same samples, float64 `[M]`.
        n: number of samples that compete, 1..M − 1.
    """
    wins = 0.0
    for opponent in range(len(gold)):
        others = np.delete(np.arange(len(gold)), opponent)
        better = (np.sign(gold[others] - gold[opponent]) + 1) / 2
        wins += float(compute_selection_probabilities(scores[others], n) @ better)
    return wins / len(gold)


def compute_kl_bound(n: int) -> float:
    """Return the upper bound of KL(best of n ‖ policy) in nats: `ln n − (n − 1) / n`."""
    return math.log(n) - (n - 1) / n
