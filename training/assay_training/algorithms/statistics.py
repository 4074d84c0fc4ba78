"""Estimate statistics with 95 % intervals for clustered rows, such as several pairs of one question.

Legend: `n` rows, `G` clusters; `x_i` is the value of row i. Arrays are float64 `[n]` unless a shape is given.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import kurtosis, mannwhitneyu, norm, skew, spearmanr, t
from statsmodels.stats.proportion import proportion_confint

from assay_training.algorithms.buckets import HIGH, LOW

Floats = NDArray[np.float64]
Z_95 = float(norm.ppf(0.975))
BINS = 10


class DegenerateSample(ValueError):
    """The error of a statistic that is undefined for the given rows."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate with its 95 % interval.

    Attributes:
        value: the estimate.
        low, high: ends of the interval.
        n: number of rows.
        clusters: number of clusters.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int


def compute_clustered_mean(values: Float64[Floats, " n"], clusters: Sequence[str]) -> Estimate:
    """Return the mean of `values` with a normal interval that is robust to dependence within clusters.

    Variance of the mean: `G / (G − 1) · Σ_g (Σ_{i in g} (x_i − mean))² / n²` (Liang and Zeger 1986, Biometrika 73, the
    linear case). With clusters of one row it is the squared standard error of the sample mean.

    Args:
        values: numbers, float64 `[n]`.
        clusters: name of each row's cluster, length n.

    Raises:
        ValueError: there are fewer than two clusters.
    """
    mean, variance, count = _compute_mean_and_variance(values, clusters)
    half = Z_95 * variance**0.5
    return Estimate(mean, mean - half, mean + half, len(values), count)


def compute_clustered_share(values: Float64[Floats, " n"], clusters: Sequence[str]) -> Estimate:
    """Return the mean of `values` in 0..1 with Wilson's interval at the effective sample size.

    The effective sample size is `n / deff · (t_{n−1} / t_{G−1})²`:

    - The design effect `deff` is the variance of `compute_clustered_mean` over that of n independent rows of 0 or 1,
      which is `p (1 − p) / (n − 1)`.
    - The ratio of the 97.5 % quantiles of t widens the interval where few clusters estimate the variance.

    See Korn and Graubard 1998, Survey Methodology 24; with Wilson's interval Franco et al. 2019, Journal of Survey
    Statistics and Methodology 7. As in these, clustered rows never count for more than independent ones. With clusters
    of one row of 0 or 1 the result is Wilson's own interval. Where all rows are equal the variance cannot be estimated,
    and the effective sample size is G.

    Args:
        values: shares or outcomes in 0..1, float64 `[n]`.
        clusters: name of each row's cluster, length n.

    Raises:
        ValueError: there are fewer than two clusters.
    """
    p, variance, count = _compute_mean_and_variance(values, clusters)
    n, size = len(values), float(count)
    # A negative correlation within clusters, which is usually chance, must not narrow the interval.
    variance = max(variance, float(values.var(ddof=1)) / n)
    if np.ptp(values) > 1e-9:  # equal shares may differ by rounding
        narrower = float(t.ppf(0.975, n - 1) / t.ppf(0.975, count - 1)) ** 2
        size = n / (n - 1) * p * (1 - p) / variance * narrower
    low, high = proportion_confint(p * size, size, method="wilson")
    return Estimate(p, float(low), float(high), n, count)


def _compute_mean_and_variance(values: Float64[Floats, " n"], clusters: Sequence[str]) -> tuple[float, float, int]:
    """Return the mean, its cluster-robust variance, and the number of clusters."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    if count < 2:
        raise ValueError(f"an interval needs at least two clusters, but the rows have {count}")
    mean = float(values.mean())
    sums = np.bincount(index, weights=values - mean)
    return mean, float(count / (count - 1) * (sums**2).sum()) / len(values) ** 2, count


def compute_interval_bounds(
    estimator: Callable[[Floats, Sequence[str]], Estimate], values: Float64[Floats, " n"], clusters: Sequence[str]
) -> list[float] | None:
    """Return the ends of an estimate's 95 % interval, or None where fewer than two clusters allow no interval.

    Args:
        estimator: `compute_clustered_mean` or `compute_clustered_share`.
        values: numbers, float64 `[n]`.
        clusters: name of each row's cluster, length n.
    """
    if len(set(clusters)) < 2:
        return None
    estimate = estimator(values, clusters)
    return [estimate.low, estimate.high]


def bootstrap_clusters(
    statistic: Callable[[NDArray[np.int64]], float], clusters: Sequence[str], *, seed: int, draws: int = 500
) -> Estimate:
    """Return a statistic with a percentile interval from resampling whole clusters with replacement.

    Draws for which the statistic is undefined, such as an AUC with one class, are skipped.

    Args:
        statistic: function of row indices, int64 `[m]`, that returns a number.
        clusters: name of each row's cluster, length n.
        seed: seed of the resampling.
        draws: number of resamples.

    Raises:
        DegenerateSample: the statistic is undefined for the rows themselves, or for more than half of the draws.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    # Stable, so that the rows of a cluster keep their order, and sums over them their rounding.
    members = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    # A generator of its own, so that the interval does not depend on what was drawn before.
    generator = np.random.default_rng(seed)
    value = statistic(np.arange(len(index)))
    drawn = []
    for _ in range(draws):
        chosen = generator.integers(len(members), size=len(members))
        with contextlib.suppress(DegenerateSample):
            drawn.append(statistic(np.concatenate([members[g] for g in chosen])))
    # An interval from the few draws that are left would not be one of the statistic.
    if len(drawn) < draws / 2:
        raise DegenerateSample(f"the statistic is defined for only {len(drawn)} of {draws} bootstrap draws")
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high), len(index), len(members))


def compute_outcomes(margins: Float64[Floats, " n"]) -> Float64[Floats, " n"]:
    """Return whether each pair is ranked correctly: 1 for a positive margin, 0 for a negative one, ½ for a tie.

    Args:
        margins: logit of the better completion minus logit of the worse, float64 `[n]`.

    Returns:
        Outcomes, float64 `[n]`; their mean is the pairwise accuracy.
    """
    return (np.sign(margins) + 1) / 2


def compute_bucket_errors(
    labels: Float64[Floats, " n"], predictions: Float64[Floats, " n"]
) -> dict[str, tuple[int, float, float]]:
    """Return number of rows, MSE and MAE for each bucket of the label, as in [CRS] tables 6 and 7.

    The buckets are `low` (label at most 0.4), `high` (at least 0.9), `mid` (between) and `all`; empty ones are skipped.

    Args:
        labels: quality labels in 0..1, float64 `[n]`.
        predictions: predicted qualities, float64 `[n]`.
    """
    buckets = {
        "low": labels <= LOW,
        "mid": (labels > LOW) & (labels < HIGH),
        "high": labels >= HIGH,
        "all": np.ones_like(labels, dtype=bool),
    }
    errors = {name: (predictions - labels)[mask] for name, mask in buckets.items()}
    return {
        name: (len(error), float((error**2).mean()), float(np.abs(error).mean()))
        for name, error in errors.items()
        if len(error)
    }


@dataclass(frozen=True, slots=True)
class Moments:
    """The moments of a distribution of reward margins ([Margin] section 4); None where too few rows define one.

    Attributes:
        n: number of pairs.
        mean: mean margin, in logits.
        std: sample standard deviation; needs two pairs.
        share_negative: share of the pairs that the model ranks wrongly.
        skewness: Fisher-Pearson skewness, 0 for a symmetric distribution; needs three pairs that are not all equal.
        kurtosis: excess kurtosis, 0 for a normal distribution; needs four pairs that are not all equal.
    """

    n: int
    mean: float | None
    std: float | None
    share_negative: float | None
    skewness: float | None
    kurtosis: float | None


def compute_moments(margins: Float64[Floats, " n"]) -> Moments:
    """Return the moments of reward margins, float64 `[n]`; n may be 0."""
    n = len(margins)
    # With equal margins skewness and kurtosis are 0/0.
    spread = n > 0 and bool(np.ptp(margins))
    return Moments(
        n=n,
        mean=float(margins.mean()) if n else None,
        std=float(margins.std(ddof=1)) if n > 1 else None,
        share_negative=float((margins < 0).mean()) if n else None,
        skewness=float(skew(margins)) if n > 2 and spread else None,
        kurtosis=float(kurtosis(margins)) if n > 3 and spread else None,
    )


@dataclass(frozen=True, slots=True)
class Bin:
    """A bin of a calibration plot: the items whose predicted quality lies in one tenth of 0..1.

    Attributes:
        low, high: ends of the tenth. The last one includes 1; predictions outside 0..1 are in the nearest.
        n: number of items.
        prediction: mean predicted quality of the items.
        label: mean label of the items; a calibrated model's equals `prediction`.
    """

    low: float
    high: float
    n: int
    prediction: float
    label: float


def compute_calibration(labels: Float64[Floats, " n"], predictions: Float64[Floats, " n"]) -> list[Bin]:
    """Return mean label and mean prediction for each tenth of the prediction; empty tenths are skipped.

    Args:
        labels: quality labels in 0..1, float64 `[n]`.
        predictions: predicted qualities, float64 `[n]`.
    """
    # Clipped before the conversion, because a raw prediction may be too large for an integer.
    index = np.clip(predictions * BINS, 0, BINS - 1).astype(int)
    return [
        Bin(k / BINS, (k + 1) / BINS, int(mask.sum()), float(predictions[mask].mean()), float(labels[mask].mean()))
        for k in range(BINS)
        if (mask := index == k).any()
    ]


def compute_reliability(margins: Float64[Floats, " n"]) -> list[Bin]:
    """Return pairwise accuracy (`label`) beside predicted confidence σ(|margin|) (`prediction`), by its tenths.

    Args:
        margins: logit of the better completion minus logit of the worse, float64 `[n]`; 0 counts as half right.
    """
    return compute_calibration(compute_outcomes(margins), expit(np.abs(margins)))


def compute_spearman(a: Float64[Floats, " n"], b: Float64[Floats, " n"]) -> float:
    """Return Spearman's rank correlation of two columns, float64 `[n]`; ties get mid-ranks.

    Raises:
        DegenerateSample: all values of a column are equal.
    """
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        raise DegenerateSample("Spearman's correlation is undefined: all values of one column are equal")
    return float(spearmanr(a, b).statistic)


def compute_auc(positive: Bool[NDArray[np.bool_], " n"], scores: Float64[Floats, " n"]) -> float:
    """Return the probability that a positive row scores above a negative row; ties count one half.

    Args:
        positive: class of each row, bool `[n]`.
        scores: scores of the rows, float64 `[n]`.

    Raises:
        DegenerateSample: one of the classes is empty.
    """
    if positive.all() or not positive.any():
        raise DegenerateSample("AUC is undefined: it needs rows of both classes")
    u = mannwhitneyu(scores[positive], scores[~positive]).statistic
    # U counts the pairs that the positive row wins, and ties as one half.
    return float(u / (positive.sum() * (~positive).sum()))
