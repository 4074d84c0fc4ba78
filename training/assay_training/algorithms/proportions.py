"""Compute win rates with standard errors, intervals and a test, and control them for length.

Legend: `n` comparisons of two models A and B. A score is 1 where A wins, 0.5 for a tie, 0 where B wins. A length
difference is A's length minus B's. Arrays are float64 `[n]`.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.special import expit
from scipy.stats import binomtest
from statsmodels.api import GLM, add_constant
from statsmodels.genmod.families import Binomial
from statsmodels.stats.proportion import proportion_confint

from assay_training.algorithms.statistics import Z_95, Floats

Interval = tuple[float, float]

# With fewer comparisons the sandwich estimator's interval can be much shorter than Wilson's of the plain win rate.
FEW_COMPARISONS = 25
UNINFORMATIVE_END = 0.01  # an interval from below this to above 1 minus this carries no information


@dataclass(frozen=True, slots=True)
class WinRate:
    """A win rate with its uncertainty; a tie counts as half a win.

    Attributes:
        value: win rate, the mean score in 0..1.
        n: number of comparisons.
        se: standard error; None where n is not larger than the degrees of freedom that it subtracts.
        normal: 95 % normal interval, value ± 1.96 se; None without se.
        wilson: 95 % score interval of Wilson. It stays within 0..1, and keeps a width at rates of 0 and 1.
        p_value: p-value of the two-sided binomial test that wins and losses are equally likely, without ties.
        wins, draws, losses: number of scores above, at and below 0.5.
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


def compute_win_rate(scores: Float64[Floats, " n"], *, ddof: int = 1) -> WinRate:
    """Return the win rate of `scores` with its standard error, intervals and binomial test.

    Args:
        scores: scores in 0..1, float64 `[n]`, n > 0.
        ddof: degrees of freedom that the standard error subtracts. 1 gives the sample's, as in [CRS] table 23;
            0 gives √(p(1−p)/n), [CRS] equation 7.1.
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


def compute_longer_wins(scores: Float64[Floats, " n"], differences: Float64[Floats, " n"]) -> float | None:
    """Return the share of comparisons that the longer completion wins; a tie counts as half a win.

    Args:
        scores: scores of model A, float64 `[n]`, 0..1.
        differences: length differences A − B, float64 `[n]`; comparisons of equal length are excluded.

    Returns:
        The share in 0..1, or None where all lengths are equal.
    """
    unequal = differences != 0
    if not unequal.any():
        return None
    return float(np.where(differences > 0, scores, 1 - scores)[unequal].mean())


def compute_length_controlled(
    scores: Float64[Floats, " n"], differences: Float64[Floats, " n"]
) -> tuple[float, Interval] | None:
    """Return the length-controlled win rate of A with its 95 % interval.

    A logistic regression fits `score = σ(θ + φ · tanh(difference / std(difference)))`. The win rate at equal length is
    σ(θ). This is the length term of [AlpacaEval-LC] equation 2, without the difficulty of the instructions, which a
    single pair of models does not determine.

    The interval is normal on the scale of θ. Its error is the sandwich estimator's, because ties are not binomial.
    Below `FEW_COMPARISONS` the residuals are too few for it, and the binomial error is used where it is larger.

    Args:
        scores: scores of model A, float64 `[n]`, 0..1.
        differences: length differences A − B, float64 `[n]`.

    Returns:
        The win rate and its interval. None in these cases:

        - all scores are equal, or all length differences are;
        - the likelihood has no finite maximum, because a length difference separates all wins from all losses
          (Albert and Anderson 1984, Biometrika 71);
        - the fit does not converge;
        - the interval covers nearly the whole scale.
    """
    if np.ptp(scores) == 0 or np.ptp(differences) == 0:
        return None
    terms = np.tanh(differences / differences.std())
    won, lost = terms[scores > 0], terms[scores < 1]
    # Complete or quasi-complete separation: the maximum likelihood estimate would be infinite.
    fitted = None if won.max() <= lost.min() or lost.max() <= won.min() else _fit(scores, terms)
    if fitted is None:
        return None
    theta, sandwich, binomial = fitted
    wide = _compute_interval(theta, max(sandwich, binomial))
    if wide[0] < UNINFORMATIVE_END and wide[1] > 1 - UNINFORMATIVE_END:
        return None
    return float(expit(theta)), wide if len(scores) < FEW_COMPARISONS else _compute_interval(theta, sandwich)


def _fit(scores: Float64[Floats, " n"], terms: Float64[Floats, " n"]) -> tuple[float, float, float] | None:
    """Return θ with its sandwich and its binomial standard error, or None where the fit fails."""
    features = add_constant(terms, has_constant="add")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning of numpy or statsmodels here means that the fit has failed
        try:
            fit = GLM(scores, features, family=Binomial()).fit(cov_type="HC0")
            estimates = float(fit.params[0]), float(fit.bse[0]), float(np.sqrt(fit.normalized_cov_params[0, 0]))
        except (Warning, ArithmeticError, ValueError, np.linalg.LinAlgError):
            return None
    return estimates if fit.converged and np.isfinite(estimates).all() else None


def _compute_interval(theta: float, error: float) -> Interval:
    """Return the 95 % interval of σ(θ)."""
    return float(expit(theta - Z_95 * error)), float(expit(theta + Z_95 * error))
