"""Win rates: the printed errors of [CRS], a second implementation of the fit, and the ends of the scale."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from assay_training.algorithms.proportions import compute_length_controlled, compute_longer_wins, compute_win_rate


def scores(wins: int, losses: int, draws: int = 0) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([1.0] * wins + [0.0] * losses + [0.5] * draws)


@pytest.mark.parametrize(
    ("wins", "se", "half", "p"),
    [  # [CRS] table 23, the printed intervals, and the binomial p-values
        (66, 4.76, 9.33, 0.0018),
        (61, 4.90, 9.6, 0.035),
        (71, 4.56, 8.93, 0.0000),
        (63, 4.85, None, 0.012),
        (55, 5.0, 9.8, 0.37),
    ],
)
def test_a_hundred_verdicts_have_the_published_errors(wins: int, se: float, half: float | None, p: float) -> None:
    rate = compute_win_rate(scores(wins, 100 - wins))
    assert (rate.value, rate.n, rate.wins, rate.draws, rate.losses) == (wins / 100, 100, wins, 0, 100 - wins)
    assert rate.se is not None
    assert rate.normal is not None
    assert 100 * rate.se == pytest.approx(se, abs=0.006)
    if half is not None:
        assert 100 * (rate.normal[1] - rate.value) == pytest.approx(half, abs=0.06)
    assert rate.p_value == pytest.approx(p, abs=0.0006 if p < 0.01 else 0.006)


def test_equation_7_1_divides_by_n() -> None:
    rate = compute_win_rate(scores(66, 34), ddof=0)
    assert rate.se is not None
    assert 100 * rate.se == pytest.approx(4.737, abs=0.0005)
    assert 100 * (compute_win_rate(scores(66, 34)).se or 0) == pytest.approx(4.761, abs=0.0005)


def test_draws_are_half_wins_that_the_test_does_not_see() -> None:
    rate = compute_win_rate(scores(6, 2, draws=4))
    assert (rate.value, rate.draws) == (8 / 12, 4)
    assert rate.p_value == pytest.approx(2 * (1 + 8 + 28) / 256)
    assert compute_win_rate(scores(0, 0, draws=3)).p_value == 1


def test_wilson_keeps_within_the_scale() -> None:
    """Of 10 wins in 10: lower end n / (n + z²)."""
    z = 1.959964
    rate = compute_win_rate(scores(10, 0))
    assert rate.wilson == pytest.approx((10 / (10 + z**2), 1.0), abs=1e-6)
    assert (rate.se, rate.normal) == (0.0, (1.0, 1.0))


def test_one_verdict_has_no_error() -> None:
    rate = compute_win_rate(scores(1, 0))
    assert (rate.value, rate.se, rate.normal) == (1.0, None, None)


def test_the_longer_one() -> None:
    assert compute_longer_wins(np.array([1.0, 0.0, 1.0, 0.5]), np.array([5.0, -2.0, -3.0, 7.0])) == pytest.approx(
        2.5 / 4
    )
    assert compute_longer_wins(np.array([1.0, 0.0]), np.array([3.0, 0.0])) == 1.0
    assert compute_longer_wins(np.array([1.0]), np.array([0.0])) is None


def test_the_win_rate_at_equal_length_is_that_of_a_logistic_fit() -> None:
    """Against scipy's minimizer on the same loss."""
    generator = np.random.default_rng(0)
    differences = generator.normal(100, 300, 200)
    likely = 1 / (1 + np.exp(-(0.3 + 1.5 * np.tanh(differences / 300))))
    won = (generator.random(200) < likely).astype(float)
    won[:10] = 0.5
    x = np.tanh(differences / differences.std())

    def loss(parameters: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        z = parameters[0] + parameters[1] * x
        return float((np.logaddexp(0, z) - won * z).sum())

    theta = minimize(loss, np.zeros(2)).x[0]
    found = compute_length_controlled(won, differences)
    assert found is not None
    rate, (low, high) = found
    assert rate == pytest.approx(1 / (1 + math.exp(-theta)), abs=1e-5)
    assert rate < won.mean()  # the first ones are longer
    design = np.stack([np.ones(200), x], axis=1)
    mean = 1 / (1 + np.exp(-(design @ minimize(loss, np.zeros(2)).x)))
    bread = np.linalg.inv((design * (mean * (1 - mean))[:, None]).T @ design)
    meat = (design * ((won - mean) ** 2)[:, None]).T @ design
    error = (bread @ meat @ bread)[0, 0] ** 0.5
    assert (low, high) == pytest.approx(
        [1 / (1 + math.exp(-theta - z * error)) for z in (-1.959964, 1.959964)], abs=1e-4
    )
    turned = compute_length_controlled(1 - won, -differences)
    assert turned is not None
    assert [turned[0], *turned[1]] == pytest.approx([1 - rate, 1 - high, 1 - low])


def test_separated_by_length_there_is_no_length_controlled_rate() -> None:
    differences = np.array([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0])
    assert compute_length_controlled((differences > 0).astype(float), differences) is None
    assert compute_length_controlled(scores(2, 2), np.zeros(4)) is None
    assert compute_length_controlled(scores(4, 0), np.array([1.0, 2.0, -1.0, 3.0])) is None
    level = np.array([-2.0, -1.0, 0.0, 0.0, 1.0])  # all apart, but for two that are equally long
    assert compute_length_controlled(np.array([0.0, 0.0, 0.0, 1.0, 1.0]), level) is None
    rising = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert compute_length_controlled(np.array([0.0, 0.0, 0.5, 1.0, 1.0]), rising) is None
    assert compute_length_controlled(np.array([0.0, 1.0, 0.0, 1.0, 1.0]), rising) is not None
    assert compute_length_controlled(np.full(5, 0.5), rising) is None


@pytest.mark.parametrize(
    ("won", "differences"),
    [
        ([0, 0, 1], [285, 333, 296]),  # no two lengths that tanh tells apart: singular
        ([0.5, 1, 0.5, 0], [-194, 1362, -186, -261]),  # fitted without remainder: errors that are not numbers
        ([0, 1, 1], [-1007, -525, -1192]),  # no output that is nearly as long as the other: 1.00 ± 0.00
    ],
)
def test_a_failed_or_uninformative_fit_gives_no_rate(won: list[float], differences: list[float]) -> None:
    assert compute_length_controlled(np.array(won, dtype=float), np.array(differences, dtype=float)) is None


def test_small_groups_have_a_rate_with_an_honest_interval_or_none() -> None:
    """None of 1,500 stops, and at six verdicts or fewer no interval is shorter than Wilson's of the plain rate."""
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(1500):
        n = int(generator.integers(1, 14))
        won = generator.choice([0.0, 0.5, 1.0] if generator.random() < 0.5 else [0.0, 1.0], n)
        differences = np.round(generator.lognormal(6.5, 1, n) - generator.lognormal(6.5, 1, n))
        equal = compute_length_controlled(won, differences)
        if equal is None:
            continue
        found += 1
        rate, (low, high) = equal
        assert 0 <= low <= rate <= high <= 1
        wilson = compute_win_rate(won).wilson
        assert n > 6 or high - low > wilson[1] - wilson[0]
    assert found > 700


def test_a_large_group_keeps_the_sandwich_estimator() -> None:
    """What the interval was of 100 verdicts, 30 of them draws, before small groups had a rule of their own."""
    generator = np.random.default_rng(1)
    differences = np.round(generator.normal(50, 300, 100))
    won = (generator.random(100) < 1 / (1 + np.exp(-differences / 300))).astype(float)
    won[:30] = 0.5
    rate, interval = compute_length_controlled(won, differences) or (0, (0, 0))
    assert [rate, *interval] == pytest.approx([0.50472629, 0.41982518, 0.58935570], abs=1e-6)
