"""Turn the numbers that a head computes for one sequence into its logit, without side effects."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from assay_service.errors import NotFinite

Aggregate = Literal["min", "last", "mean", "product"]
Likelihood = Literal["sum", "mean"]


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of one signal for one item.

    Attributes:
        logit: logit of the item.
        std: standard deviation of the predicted distribution, in logits; None if the head predicts a value only.
        steps: logits of the steps of the completion; empty unless steps are scored.
    """

    logit: float
    std: float | None = None
    steps: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadingRule:
    """The rule by which one signal reads the numbers of its head.

    Attributes:
        has_std: whether the head gives a standard deviation after each logit.
        aggregate: rule that makes one logit of several steps; None if steps are not scored.
        as_probabilities: whether the rule combines the sigmoids of the logits, as for absolute signals.
        likelihood: whether the logit is the log-probability of the completion or its mean over the tokens. The head
            then gives the sum and the number of tokens. None for other heads.
    """

    has_std: bool = False
    aggregate: Aggregate | None = None
    as_probabilities: bool = False
    likelihood: Likelihood | None = None

    def read(self, numbers: tuple[float, ...]) -> Reading:
        """Return the result of the numbers that the head gave for one sequence."""
        if self.has_std:
            logit, std = numbers
            return Reading(logit, std)
        if self.likelihood is not None:
            total, tokens = numbers
            return Reading(total if self.likelihood == "sum" else total / tokens)
        if self.aggregate is None:
            (logit,) = numbers
            return Reading(logit)
        return Reading(combine_steps(numbers, self.aggregate, as_probabilities=self.as_probabilities), steps=numbers)


def combine_steps(logits: Sequence[float], aggregate: Aggregate, *, as_probabilities: bool) -> float:
    """Return one logit for the logits of several steps, in float64.

    Args:
        logits: logits of the steps in their order, at least one.
        aggregate: the lowest, the last, the mean or the product of the steps.
        as_probabilities: True takes mean and product of the sigmoids, and returns the logit of the result. False takes
            the mean of the logits.

    Raises:
        NotFinite: the result is not finite: the product of so many steps is 0 or 1 in float64.
        ValueError: a product of logits was asked for, which has no meaning.
    """
    match aggregate:
        case "min":
            return min(logits)
        case "last":
            return logits[-1]
        case "mean" if not as_probabilities:
            return math.fsum(logits) / len(logits)
        case "mean":
            # The quotient of the sums of σ(x) and σ(-x); both stay exact where a mean near 1 would be rounded to it.
            return _log_sum_sigmoid(logits) - _log_sum_sigmoid([-logit for logit in logits])
        case "product" if as_probabilities:
            log_product = math.fsum(map(_log_sigmoid, logits))
            if not -math.inf < log_product < 0:
                raise NotFinite("the product of the steps has no finite logit in float64")
            return log_product - _log_one_minus_exp(log_product)
        case "product":
            raise ValueError("a product is only for probabilities")


def _log_sigmoid(logit: float) -> float:
    """Return the logarithm of the logistic function, without overflow."""
    return -math.log1p(math.exp(-logit)) if logit >= 0 else logit - math.log1p(math.exp(logit))


def _log_sum_sigmoid(logits: Sequence[float]) -> float:
    """Return the logarithm of a sum of logistic functions."""
    logs = [_log_sigmoid(logit) for logit in logits]
    largest = max(logs)
    return largest + math.log(math.fsum(math.exp(log - largest) for log in logs))


def _log_one_minus_exp(log: float) -> float:
    """Return `log(1 - exp(log))` for `log` below 0; each branch keeps the digits that the other one loses."""
    return math.log(-math.expm1(log)) if log > -math.log(2) else math.log1p(-math.exp(log))
