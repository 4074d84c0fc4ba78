"""Estimates with intervals, for rows that come in clusters (several pairs share a question).

Legend: `n` rows, `G` clusters.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import kurtosis, mannwhitneyu, norm, skew, spearmanr, t
from statsmodels.stats.proportion import proportion_confint

from assay_training.algorithms.buckets import HIGH, LOW

Floats = NDArray[np.float64]
Z_95 = float(norm.ppf(0.975))
BINS = 10


class DegenerateSample(ValueError):
    """A statistic does not exist for these rows."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: the estimate.
        low, high: the interval.
        n: rows.
        clusters: what they fall into.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int


def clustered_mean(values: Floats, clusters: Sequence[str]) -> Estimate:
    """The mean of `values` with a normal interval whose variance is robust to dependence within clusters.

    Variance of the mean: `G / (G - 1) · Σ_g (Σ_{i in g} (x_i - mean))² / n²` (Liang and Zeger 1986, the linear case).
    With clusters of one row it is the sample SEM².

    Args:
        values: `[n]`.
        clusters: the cluster of each row, `[n]`.

    Raises:
        ValueError: there are fewer than two clusters.
    """
    mean, variance, count = _clustered(values, clusters)
    half = Z_95 * variance**0.5
    return Estimate(mean, mean - half, mean + half, len(values), count)


def clustered_share(values: Floats, clusters: Sequence[str]) -> Estimate:
    """The mean of `values` in 0..1 with Wilson's interval, within 0..1, at the effective sample size.

    That size is `n / deff · (t_{n-1} / t_{G-1})²`. The design effect `deff` is `clustered_mean`'s variance over that of
    n independent rows of 0 or 1, `p (1 - p) / (n - 1)`; the 97.5 % quantiles of t widen what few clusters tell of it
    (Korn and Graubard 1998, Survey Methodology 24; with Wilson's interval Franco et al. 2019, J. Survey Stat.
    Methodol. 7). As there, clusters never count for more than rows without clusters would. With clusters of one row of
    0 or 1 it is Wilson's own interval. Where all rows are equal no variance is seen, and the size is `G`.

    Args:
        values: `[n]`, 0..1.
        clusters: the cluster of each row, `[n]`.

    Raises:
        ValueError: there are fewer than two clusters.
    """
    p, variance, count = _clustered(values, clusters)
    n, size = len(values), float(count)
    variance = max(variance, float(values.var(ddof=1)) / n)
    if np.ptp(values) > 1e-9:  # more than rounding leaves
        narrower = float(t.ppf(0.975, n - 1) / t.ppf(0.975, count - 1)) ** 2
        size = n / (n - 1) * p * (1 - p) / variance * narrower
    low, high = proportion_confint(p * size, size, method="wilson")
    return Estimate(p, float(low), float(high), n, count)


def _clustered(values: Floats, clusters: Sequence[str]) -> tuple[float, float, int]:
    """The mean, its variance, and how many clusters there are."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    if count < 2:
        raise ValueError(f"an interval needs at least two clusters, there are {count}")
    mean = float(values.mean())
    sums = np.bincount(index, weights=values - mean)
    return mean, float(count / (count - 1) * (sums**2).sum()) / len(values) ** 2, count


def interval_bounds(
    estimator: Callable[[Floats, Sequence[str]], Estimate], values: Floats, clusters: Sequence[str]
) -> list[float] | None:
    """The ends of an estimate's interval; None where there are fewer than two clusters, and so none."""
    if len(set(clusters)) < 2:
        return None
    estimate = estimator(values, clusters)
    return [estimate.low, estimate.high]


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], clusters: Sequence[str], *, seed: int, draws: int = 500
) -> Estimate:
    """A statistic with a percentile interval from resampling whole clusters.

    Draws for which the statistic does not exist (AUC with one class) are left out.

    Args:
        statistic: from row indices to a number.
        clusters: the cluster of each row, `[n]`.
        seed: of the resampling.
        draws: how many resamples.

    Raises:
        DegenerateSample: the statistic does not exist for the rows themselves, or for most draws.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    members = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    generator = np.random.default_rng(seed)
    value = statistic(np.arange(len(index)))
    drawn = []
    for _ in range(draws):
        chosen = generator.integers(len(members), size=len(members))
        with contextlib.suppress(DegenerateSample):
            drawn.append(statistic(np.concatenate([members[g] for g in chosen])))
    if len(drawn) < draws / 2:
        raise DegenerateSample(f"only {len(drawn)} of {draws} draws have the statistic")
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high), len(index), len(members))


def outcomes(margins: Floats) -> Floats:
    """Pairwise accuracy row by row: 1 for a positive margin, 0 for a negative one, one half for a tie."""
    return (np.sign(margins) + 1) / 2


def bucket_errors(labels: Floats, predictions: Floats) -> dict[str, tuple[int, float, float]]:
    """Rows, MSE and MAE by the label's bucket, as in [CRS] tables 6-7: low <= 0.4, high >= 0.9, mid between."""
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
    """How reward margins are distributed ([Margin] section 4); None is what so few, or equal ones, have not.

    Attributes:
        n: pairs.
        mean: of the margins.
        std: sample standard deviation; of two or more.
        share_negative: pairs that the model has the wrong way round.
        skewness: Fisher-Pearson, 0 for a symmetric distribution; of three or more that differ.
        kurtosis: excess, 0 for a normal distribution; of four or more that differ.
    """

    n: int
    mean: float | None
    std: float | None
    share_negative: float | None
    skewness: float | None
    kurtosis: float | None


def moments(margins: Floats) -> Moments:
    """The moments of reward margins, `[n]`."""
    n = len(margins)
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
    """Items whose predicted quality lies in a tenth of 0..1.

    Attributes:
        low, high: its ends; the last tenth holds 1 as well, and what lies outside 0..1 is in the nearest.
        n: items.
        prediction: their mean predicted quality.
        label: their mean label; equal to the prediction where a model is calibrated.
    """

    low: float
    high: float
    n: int
    prediction: float
    label: float


def calibration(labels: Floats, predictions: Floats) -> list[Bin]:
    """Mean label beside mean prediction, by tenths of the prediction; empty tenths are left out. Both `[n]`."""
    index = np.clip(predictions * BINS, 0, BINS - 1).astype(int)  # in this order: some predictions fit no integer
    return [
        Bin(k / BINS, (k + 1) / BINS, int(mask.sum()), float(predictions[mask].mean()), float(labels[mask].mean()))
        for k in range(BINS)
        if (mask := index == k).any()
    ]


def reliability(margins: Floats) -> list[Bin]:
    """How often the preferred one of a pair is right (`label`) beside σ(|margin|) (`prediction`), by its tenths.

    Args:
        margins: Bradley-Terry logits of the better completion minus the worse, `[n]`; a margin of 0 is half right.
    """
    return calibration(outcomes(margins), expit(np.abs(margins)))


def spearman(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation; ties get mid-ranks.

    Raises:
        DegenerateSample: one of the sides is constant.
    """
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        raise DegenerateSample("Spearman's correlation needs rows that differ")
    return float(spearmanr(a, b).statistic)


def auc(positive: NDArray[np.bool_], scores: Floats) -> float:
    """The chance that a positive row's score is above a negative row's, ties counting one half.

    Raises:
        DegenerateSample: one of the classes is empty.
    """
    if positive.all() or not positive.any():
        raise DegenerateSample("AUC needs rows of both classes")
    u = mannwhitneyu(scores[positive], scores[~positive]).statistic
    return float(u / (positive.sum() * (~positive).sum()))
