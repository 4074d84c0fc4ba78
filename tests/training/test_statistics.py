"""Estimates and intervals against numbers worked out by hand."""

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from assay_training.algorithms.statistics import (
    Floats,
    bootstrap_clusters,
    compute_auc,
    compute_bucket_errors,
    compute_calibration,
    compute_clustered_mean,
    compute_clustered_share,
    compute_interval_bounds,
    compute_moments,
    compute_outcomes,
    compute_spearman,
)

Z = 1.959964


def test_with_clusters_of_one_it_is_the_sample_sem() -> None:
    """66 wins of 100 have an SEM of 4.761 % ([CRS] table 23), not the 4.737 % of the formula with n."""
    wins = np.array([1.0] * 66 + [0.0] * 34)
    estimate = compute_clustered_mean(wins, [f"prompt {i}" for i in range(100)])
    assert estimate.value == pytest.approx(0.66)
    assert (estimate.n, estimate.clusters) == (100, 100)
    assert (estimate.high - estimate.low) / 2 / Z == pytest.approx(0.04761, abs=5e-6)
    assert (estimate.high + estimate.low) / 2 == pytest.approx(0.66)


def test_clusters_of_different_size() -> None:
    """Mean 2/3; residuals sum to 1/3 (a: 1 1 0 1), -2/3 (b: 0) and 1/3 (c: 1); 3/2 · 6/9 = 1, so the error is 1/6."""
    estimate = compute_clustered_mean(np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]), ["a", "b", "a", "c", "a", "a"])
    assert (estimate.n, estimate.clusters) == (6, 3)
    assert estimate.value == pytest.approx(2 / 3)
    assert estimate.low == pytest.approx(2 / 3 - Z / 6, abs=1e-6)
    assert estimate.high == pytest.approx(2 / 3 + Z / 6, abs=1e-6)


def test_repeating_every_row_in_its_cluster_does_not_narrow_the_interval() -> None:
    values, names = np.array([0.0, 1.0, 1.0, 0.5, 1.0]), list("abcde")
    once = compute_clustered_mean(values, names)
    thrice = compute_clustered_mean(np.repeat(values, 3), [name for name in names for _ in range(3)])
    assert [thrice.low, thrice.high] == pytest.approx([once.low, once.high])


@pytest.mark.parametrize("clusters", [["a", "a", "a"], []])
def test_an_interval_needs_two_clusters(clusters: list[str]) -> None:
    with pytest.raises(ValueError, match="at least two clusters"):
        compute_clustered_mean(np.ones(len(clusters)), clusters)


def wilson(p: float, n: float) -> list[float]:
    """His formula, 1927."""
    middle, half = p + Z**2 / (2 * n), Z * (p * (1 - p) / n + Z**2 / (4 * n**2)) ** 0.5
    return [(middle - half) / (1 + Z**2 / n), (middle + half) / (1 + Z**2 / n)]


def test_a_share_of_rows_that_are_clusters_has_wilsons_interval() -> None:
    """66 of 100: 56.28 to 74.54 %."""
    estimate = compute_clustered_share(np.array([1.0] * 66 + [0.0] * 34), [f"prompt {i}" for i in range(100)])
    assert (estimate.value, estimate.n, estimate.clusters) == (0.66, 100, 100)
    assert [estimate.low, estimate.high] == pytest.approx([0.56278, 0.74538], abs=5e-6)


def test_a_share_over_clusters_has_wilsons_interval_at_the_effective_size() -> None:
    """Residuals sum to 1, -4/3 and 1/3: 3/2 · 26/9 / 36 = 13/108, 65/24 of 2/45; times (2.570582 / 4.302653)² for 3."""
    estimate = compute_clustered_share(np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]), ["a", "b", "a", "c", "b", "a"])
    assert [estimate.low, estimate.high] == pytest.approx(wilson(2 / 3, 6 * 24 / 65 * 0.3569365), abs=1e-6)


@pytest.mark.parametrize(("value", "expected"), [(1.0, [0.438503, 1.0]), (0.0, [0.0, 0.561497])])
def test_all_right_or_all_wrong_is_not_certain(value: float, expected: list[float]) -> None:
    """As many rows as clusters: 3 of 3, and 0 of 3."""
    estimate = compute_clustered_share(np.full(12, value), list("aaaabbbbcccc"))
    assert [estimate.low, estimate.high] == pytest.approx(expected, abs=1e-6)


def test_clusters_with_equal_means_count_for_no_more_than_their_rows() -> None:
    """Ten times a right and a wrong one: Wilson's of 20 rows, less (2.093024 / 2.262157)² for ten clusters."""
    estimate = compute_clustered_share(np.array([0.0, 1.0] * 10), [str(i // 2) for i in range(20)])
    assert [estimate.low, estimate.high] == pytest.approx(wilson(0.5, 20 * 0.8560564), abs=1e-6)


def test_the_interval_of_a_share_is_within_0_and_1_and_has_a_width() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        count = int(generator.integers(2, 6))
        clusters = [str(i) for i in [*range(count), *generator.integers(count, size=20).tolist()]]
        values = (
            generator.integers(0, 3, size=len(clusters)) / 2 if generator.random() < 0.8 else np.full(count + 20, 0.3)
        )
        estimate = compute_clustered_share(values, clusters)
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.high - estimate.low > 0.1


def test_one_cluster_has_no_interval() -> None:
    assert compute_interval_bounds(compute_clustered_share, np.ones(3), list("aaa")) is None
    assert compute_interval_bounds(compute_clustered_mean, np.zeros(0), []) is None
    assert compute_interval_bounds(compute_clustered_mean, np.array([1.0, 1.0]), list("ab")) == [1.0, 1.0]


def test_a_tie_is_one_half() -> None:
    assert compute_outcomes(np.array([0.3, -2.0, 0.0, -0.0, 1e-30])).tolist() == [1.0, 0.0, 0.5, 0.5, 1.0]


def test_bucket_errors_of_ten_rows() -> None:
    labels = np.array([0.0, 0.2, 0.4, 0.41, 0.5, 0.7, 0.89, 0.9, 1.0, 1.0])
    predictions = np.array([0.5, 0.2, 0.3, 0.41, 0.3, 0.8, 0.59, 0.8, 1.0, 0.4])
    errors = compute_bucket_errors(labels, predictions)
    assert {name: numbers[0] for name, numbers in errors.items()} == {"low": 3, "mid": 4, "high": 3, "all": 10}
    assert errors["low"][1:] == pytest.approx((0.26 / 3, 0.6 / 3))  # 0.5 0 0.1
    assert errors["mid"][1:] == pytest.approx((0.14 / 4, 0.6 / 4))  # 0 0.2 0.1 0.3
    assert errors["high"][1:] == pytest.approx((0.37 / 3, 0.7 / 3))  # 0.1 0 0.6
    assert errors["all"][1:] == pytest.approx((0.077, 0.19))


def test_a_bucket_without_rows_is_skipped() -> None:
    assert set(compute_bucket_errors(np.array([0.0, 1.0]), np.array([0.5, 0.5]))) == {"low", "high", "all"}


def test_auc_counts_ties_one_half() -> None:
    """Positives 0.9 0.5, negatives 0.5 0.1: of four pairs three are right and one is a tie."""
    positive = np.array([True, False, True, False])
    assert compute_auc(positive, np.array([0.9, 0.5, 0.5, 0.1])) == 0.875
    assert compute_auc(positive, np.array([1.0, 0.0, 1.0, 0.0])) == 1.0
    assert compute_auc(positive, np.array([0.0, 1.0, 0.0, 1.0])) == 0.0


@pytest.mark.parametrize("positive", [[True, True], [False, False]])
def test_auc_needs_both_classes(positive: list[bool]) -> None:
    with pytest.raises(ValueError, match="both classes"):
        compute_auc(np.array(positive), np.array([0.1, 0.2]))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0, 3.0], [10.0, 100.0, 1000.0], 1.0),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], -1.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 4.0, 3.0, 5.0], 0.8),  # 1 - 6 · 4 / (5 · 24)
        ([1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], 0.9486833),  # ranks 1 2.5 2.5 4: 4.5 / √(4.5 · 5)
    ],
)
def test_spearman_with_mid_ranks(a: list[float], b: list[float], expected: float) -> None:
    assert compute_spearman(np.array(a), np.array(b)) == pytest.approx(expected, abs=1e-6)


def test_the_bootstrap_draws_whole_clusters_and_as_many_as_there_are() -> None:
    clusters = list("abcabcbccd")
    sizes = Counter(clusters)
    distinct = set()

    def statistic(index: NDArray[np.int64]) -> float:
        rows = Counter(index.tolist())
        draws = {}
        for name in sizes:
            counts = {rows[i] for i, cluster in enumerate(clusters) if cluster == name}
            assert len(counts) == 1, "a cluster was split"
            draws[name] = counts.pop()
        assert sum(draws.values()) == 4
        distinct.add(tuple(draws.values()))
        return float(len(index))

    estimate = bootstrap_clusters(statistic, clusters, seed=0, draws=200)
    assert (estimate.value, estimate.n, estimate.clusters) == (10.0, 10, 4)
    assert len(distinct) > 20  # of 35 multisets
    assert estimate.low < 10 < estimate.high


def test_the_bootstrap_is_seeded() -> None:
    values = np.arange(30.0)
    clusters = [str(i % 10) for i in range(30)]

    def estimate(seed: int) -> tuple[float, float]:
        result = bootstrap_clusters(lambda index: float(values[index].mean()), clusters, seed=seed, draws=50)
        return result.low, result.high

    assert estimate(1) == estimate(1)
    assert estimate(1) != estimate(2)


def test_the_bootstrap_of_a_mean_has_the_interval_of_the_formula() -> None:
    generator = np.random.default_rng(0)
    shared = np.repeat(generator.normal(size=200), 3)
    values: Floats = shared + 0.1 * generator.normal(size=600)
    clusters = [str(i // 3) for i in range(600)]
    formula = compute_clustered_mean(values, clusters)
    drawn = bootstrap_clusters(lambda index: float(values[index].mean()), clusters, seed=0, draws=1000)
    assert drawn.value == pytest.approx(formula.value)
    assert drawn.high - drawn.low == pytest.approx(formula.high - formula.low, rel=0.1)


def test_the_moments_of_margins() -> None:
    """By hand: deviations -2 -1 0 0 3; m2 = 14/5, m3 = (-8 - 1 + 27)/5, m4 = (16 + 1 + 81)/5."""
    moments = compute_moments(np.array([-1.0, 0.0, 1.0, 1.0, 4.0]))
    assert (moments.n, moments.mean, moments.share_negative) == (5, 1.0, 0.2)
    assert moments.std == pytest.approx((14 / 4) ** 0.5)
    assert moments.skewness == pytest.approx(3.6 / 2.8**1.5)
    assert moments.kurtosis == pytest.approx(19.6 / 2.8**2 - 3)


def test_margins_that_are_all_equal_have_no_shape() -> None:
    moments = compute_moments(np.full(5, 2.0))
    assert (moments.mean, moments.std, moments.skewness, moments.kurtosis) == (2.0, 0.0, None, None)


def test_too_few_margins_have_no_moments() -> None:
    """Two have a spread, three a skewness (-1 -1 2 have m2 = m3 = 2), four a kurtosis."""
    found = [compute_moments(np.array([0.0, 0.0, 3.0, 1.0][:n])) for n in range(5)]
    assert [moments.n for moments in found] == [0, 1, 2, 3, 4]
    assert (found[0].mean, found[0].share_negative, found[1].mean, found[1].share_negative) == (None, None, 0.0, 0.0)
    assert [moments.std for moments in found[:3]] == [None, None, 0.0]
    assert [moments.skewness for moments in found[:4]] == [None, None, None, pytest.approx(2 / 2**1.5)]
    assert [moments.kurtosis is None for moments in found] == [True, True, True, True, False]


def test_calibration_by_tenths_of_the_prediction() -> None:
    predictions = np.array([0.05, 0.07, 0.1, 0.95, 1.0, 1.3, -0.2])
    labels = np.array([0.0, 0.5, 0.25, 1.0, 0.5, 0.0, 0.1])
    low, second, high = compute_calibration(labels, predictions)
    assert (low.low, low.high, low.n) == (0.0, 0.1, 3)
    assert low.prediction == pytest.approx(-0.08 / 3)
    assert low.label == pytest.approx(0.2)
    assert (second.low, second.n, second.label) == (0.1, 1, 0.25)
    assert (high.low, high.n, high.label) == (0.9, 3, 0.5)


def test_a_prediction_far_outside_is_in_the_nearest_tenth() -> None:
    low, high = compute_calibration(np.array([0.0, 1.0]), np.array([-1e30, 1e30]))
    assert (low.low, low.prediction, high.high, high.prediction) == (0.0, -1e30, 1.0, 1e30)
