"""A share of wins: its error, intervals and test, and what length has to do with it."""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import binomtest
from statsmodels.api import GLM, add_constant
from statsmodels.genmod.families import Binomial
from statsmodels.stats.proportion import proportion_confint

from assay_training.algorithms.statistics import Z_95, Floats

Interval = tuple[float, float]

FEW = 25  # verdicts: below, the sandwich estimator's interval may be much shorter than Wilson's of the plain rate
OPEN = 0.01  # an interval from below this to above 1 minus this says nothing


@dataclass(frozen=True, slots=True)
class WinRate:
    """The mean of scores in 0..1, where a win is 1, a draw 0.5.

    Attributes:
        value: the mean.
        n: scores.
        se: standard error; None for a single score where it divides by n - 1.
        normal: value ± 1.96 se; None without se.
        wilson: Wilson's score interval, which stays within 0..1 and does not shrink to nothing at its ends.
        p_value: of the two-sided binomial test that wins and losses are equally likely; draws say nothing.
        wins, draws, losses: scores above, at and below 0.5.
    """

    value: float
    n: int
    se: float | None
    normal: Interval | None
    wilson: Interval
    p_value: float
    wins: int
    draws: int
    losses: int


def win_rate(scores: Floats, *, ddof: int = 1) -> WinRate:
    """The share of wins in `scores`, `[n]` with n > 0.

    Args:
        scores: 0..1.
        ddof: 1 for the sample's standard error, as in [CRS] table 23; 0 for its equation 7.1, √(p(1−p)/n).
    """
    value, n = float(scores.mean()), len(scores)
    se = float(scores.std(ddof=ddof)) / n**0.5 if n > ddof else None
    wins, losses = int((scores > 0.5).sum()), int((scores < 0.5).sum())
    low, high = proportion_confint(scores.sum(), n, method="wilson")
    return WinRate(
        value=value,
        n=n,
        se=se,
        normal=None if se is None else (value - Z_95 * se, value + Z_95 * se),
        wilson=(float(low), float(high)),
        p_value=float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
        wins=wins,
        draws=n - wins - losses,
        losses=losses,
    )


def longer_wins(scores: Floats, differences: Floats) -> float | None:
    """How often the longer one wins, draws counting one half; None where all are equally long.

    Args:
        scores: of the first of two, `[n]`.
        differences: its length minus the other's, `[n]`.
    """
    unequal = differences != 0
    if not unequal.any():
        return None
    return float(np.where(differences > 0, scores, 1 - scores)[unequal].mean())


def length_controlled(scores: Floats, differences: Floats) -> tuple[float, Interval] | None:
    """The win rate at equal length, σ(θ) of a logistic fit of scores on θ + φ tanh(difference / its std); and 95 %.

    The length term of AlpacaEval 2 (Dubois et al. 2024, eq. 2), without the instructions' difficulties, which one pair
    of models does not determine. The interval is normal on θ's scale, by the sandwich estimator, as draws are not
    binomial; of fewer than `FEW` verdicts, whose residuals say too little, by the binomial error where that is larger.

    None where all scores are equal; where the fit has no finite maximum, as there is but one length, or some length
    tells all wins from all losses (Albert and Anderson 1984), or where the numbers are too close to that to be
    computed; and where it leaves everything open, so that the interval is the whole scale.

    Args:
        scores: of the first of two, `[n]`, 0..1.
        differences: its length minus the other's, `[n]`.
    """
    if np.ptp(scores) == 0 or np.ptp(differences) == 0:
        return None
    terms = np.tanh(differences / differences.std())
    won, lost = terms[scores > 0], terms[scores < 1]
    fitted = None if won.max() <= lost.min() or lost.max() <= won.min() else _fit(scores, terms)
    if fitted is None:
        return None
    theta, sandwich, binomial = fitted
    wide = _interval(theta, max(sandwich, binomial))
    if wide[0] < OPEN and wide[1] > 1 - OPEN:
        return None
    return float(expit(theta)), wide if len(scores) < FEW else _interval(theta, sandwich)


def _fit(scores: Floats, terms: Floats) -> tuple[float, float, float] | None:
    """θ with its two standard errors, or None where there is no fit that could be computed."""
    features = add_constant(terms, has_constant="add")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what numpy and statsmodels warn of here is a fit that went astray
        try:
            fit = GLM(scores, features, family=Binomial()).fit(cov_type="HC0")
            found = float(fit.params[0]), float(fit.bse[0]), float(np.sqrt(fit.normalized_cov_params[0, 0]))
        except (Warning, ArithmeticError, ValueError, np.linalg.LinAlgError):
            return None
    return found if fit.converged and np.isfinite(found).all() else None


def _interval(theta: float, error: float) -> Interval:
    return float(expit(theta - Z_95 * error)), float(expit(theta + Z_95 * error))
