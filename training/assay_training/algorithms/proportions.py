"""A share of wins: its error, intervals and test, and what length has to do with it."""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import binomtest
from statsmodels.api import GLM, add_constant
from statsmodels.genmod.families import Binomial
from statsmodels.stats.proportion import proportion_confint

from assay_training.algorithms.statistics import Z_95, Floats

Interval = tuple[float, float]


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
        ddof: 1 for the sample's standard error, as in the thesis' Table 23; 0 for its equation 7.1, √(p(1−p)/n).
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
    binomial. None where all scores are equal, and where the fit has no finite maximum: there is but one length, or some
    length tells all wins from all losses (Albert and Anderson 1984).

    Args:
        scores: of the first of two, `[n]`, 0..1.
        differences: its length minus the other's, `[n]`.
    """
    won, lost = differences[scores > 0], differences[scores < 1]
    if np.ptp(scores) == 0 or won.max() <= lost.min() or lost.max() <= won.min():
        return None
    features = add_constant(np.tanh(differences / differences.std()), has_constant="add")
    fit = GLM(scores, features, family=Binomial()).fit(cov_type="HC0")
    low, high = fit.conf_int()[0]
    return float(expit(fit.params[0])), (float(expit(low)), float(expit(high)))
