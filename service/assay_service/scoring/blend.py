"""From logits to scores: blend, rank, compare. Pure, float64."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from assay_service.errors import NotFinite

Standardise = Literal["none", "manifest"]


@dataclass(frozen=True, slots=True)
class Blend:
    """A rule that makes one score from several logits.

    Attributes:
        name: its served name; of weights that came with a request, "custom".
        weights: by signal, finite and not negative; used as they are, not normalised.
        standardise: "manifest": each logit is first standardised with its checkpoint's mean and std, because
            Bradley-Terry logits have no scale of their own (scoring-traps 24).
    """

    name: str
    weights: Mapping[str, float]
    standardise: Standardise = "none"


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of a signal's logits over its training completions."""

    mean: float
    std: float


def blended(blend: Blend, logits: Mapping[str, float], moments: Mapping[str, Moments]) -> float:
    """The score: `Σ_s w_s · x_s` with `x_s` the logit, or `(logit - mean_s) / std_s`.

    Source: [CRS] section 5.4, reward of crs_rlhf (weights on logits); standardising is ours.

    Args:
        blend: the rule.
        logits: at least those that the blend weighs.
        moments: of the signals; needed where the blend standardises.

    Raises:
        NotFinite: a logit or the sum is not finite; a failure never becomes a number.
        KeyError: a logit or its moments are missing.
    """
    terms = []
    for signal, weight in blend.weights.items():
        value = logits[signal]
        if blend.standardise == "manifest":
            value = (value - moments[signal].mean) / moments[signal].std
        terms.append(weight * value)
    if not all(map(math.isfinite, [*logits.values(), *terms])) or not math.isfinite(score := math.fsum(terms)):
        raise NotFinite("the score is not a finite number")
    return score


def probability(logit: float) -> float:
    """The logistic function in float64, which reaches 1.0 from a logit of about 37 (float32: 17)."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))


@dataclass(frozen=True, slots=True)
class Place:
    """One completion in a ranking.

    Attributes:
        index: of the completion in the request.
        margin: its score minus the next one's; None for the last.
    """

    index: int
    margin: float | None


def ranked(scores: Mapping[int, float]) -> Sequence[Place]:
    """Completions by falling score; equal scores by rising index."""
    order = sorted(scores, key=lambda index: (-scores[index], index))
    following: list[int | None] = [*order[1:], None]
    return [
        Place(index, None if after is None else scores[index] - scores[after])
        for index, after in zip(order, following, strict=False)
    ]
