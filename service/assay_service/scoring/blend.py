"""Turn logits into scores: blend, rank and compare them in float64, without side effects."""

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
        name: served name of the blend; "custom" for weights that came with a request.
        weights: finite, non-negative weights keyed by signal; used as they are, not normalised.
        standardise: "manifest" standardises each logit first by its checkpoint's mean and std, because Bradley-Terry
            logits have no scale of their own (scoring-traps 24). "none" does not.
    """

    name: str
    weights: Mapping[str, float]
    standardise: Standardise = "none"


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of a signal's logits over its training completions."""

    mean: float
    std: float


def blend_logits(blend: Blend, logits: Mapping[str, float], moments: Mapping[str, Moments]) -> float:
    """Return the score `Σ_s w_s · x_s`, where `x_s` is the logit or `(logit - mean_s) / std_s`.

    Source: [CRS] section 5.4, the reward of crs-rlhf (weights on logits); standardising is ours.

    Args:
        blend: blending rule.
        logits: logits keyed by signal, at least those that the blend weighs.
        moments: moments keyed by signal; needed if the blend standardises.

    Raises:
        NotFinite: a logit or the sum is not finite; a failure never becomes a number.
        KeyError: a logit or its moments are missing.
    """
    terms = weigh_logits(blend, logits, moments)
    # fsum rounds only once, so the order of the signals does not change the score.
    finite = all(map(math.isfinite, [*logits.values(), *terms.values()]))
    if not finite or not math.isfinite(score := math.fsum(terms.values())):
        raise NotFinite("the score is not a finite number, so it is not returned; check the weights of the checkpoint")
    return score


def weigh_logits(blend: Blend, logits: Mapping[str, float], moments: Mapping[str, Moments]) -> dict[str, float]:
    """Return the term `w_s · x_s` of each signal, whose sum is the score; see `blend_logits`."""
    terms = {}
    for signal, weight in blend.weights.items():
        value = logits[signal]
        if blend.standardise == "manifest":
            value = (value - moments[signal].mean) / moments[signal].std
        terms[signal] = weight * value
    return terms


def compute_probability(logit: float) -> float:
    """Return the logistic function of a logit in float64, which reaches 1.0 at a logit of about 37 (float32: 17)."""
    if logit >= 0:  # each branch avoids the overflow of exp
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))


@dataclass(frozen=True, slots=True)
class Place:
    """One completion in a ranking.

    Attributes:
        index: index of the completion in the request.
        margin: score of the completion minus that of the next one; None for the last.
    """

    index: int
    margin: float | None


def rank_scores(scores: Mapping[int, float]) -> Sequence[Place]:
    """Return completions by falling score; equal scores by rising index."""
    order = sorted(scores, key=lambda index: (-scores[index], index))
    following: list[int | None] = [*order[1:], None]
    return [
        Place(index, None if after is None else scores[index] - scores[after])
        for index, after in zip(order, following, strict=False)
    ]
