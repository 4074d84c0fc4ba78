"""Turn logits into scores: blend, rank and compare them in float64, without side effects."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from assay_service.errors import NotFinite

Standardise = Literal["none", "manifest"]

# Key of the length penalty among the terms of a score; the space keeps it apart from the names of signals.
LENGTH_TERM = "length penalty"


@dataclass(frozen=True, slots=True)
class LengthPenalty:
    """A penalty on long completions.

    Attributes:
        per_token: logits that each token of the completion subtracts from the score, above zero.
        signal: signal of the blend whose tokens are counted. The count is `Rendered.completion_tokens`, which includes
            the end of turn.
    """

    per_token: float
    signal: str


@dataclass(frozen=True, slots=True)
class Blend:
    """A rule that makes one score from several logits.

    Attributes:
        name: served name of the blend; "custom" for weights that came with a request.
        weights: finite weights keyed by signal, not all zero; used as they are, not normalized. A negative weight makes
            a signal a cost.
        standardise: "manifest" standardises each logit first by its checkpoint's mean and std, because Bradley-Terry
            logits have no scale of their own (scoring-traps 24). "none" does not.
        length_penalty: penalty on long completions, which is not standardised; None for no penalty.
    """

    name: str
    weights: Mapping[str, float]
    standardise: Standardise = "none"
    length_penalty: LengthPenalty | None = None


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of a signal's logits over its training completions."""

    mean: float
    std: float


def blend_logits(
    blend: Blend, logits: Mapping[str, float], moments: Mapping[str, Moments], completion_tokens: Mapping[str, int]
) -> float:
    """Return the score `Σ_s w_s · x_s - p · t`, where `x_s` is the logit or `(logit - mean_s) / std_s`.

    `p · t` is the length penalty: logits per token times the tokens of the completion. It is 0 without a penalty.

    Source: [CRS] section 5.4, the reward of crs-rlhf (weights on logits); standardising and the penalty are ours.

    Args:
        blend: blending rule.
        logits: logits keyed by signal, at least those that the blend weighs.
        moments: moments keyed by signal; needed if the blend standardises.
        completion_tokens: numbers of tokens of the completion keyed by signal; needed if the blend has a penalty.

    Raises:
        NotFinite: a logit or the sum is not finite; a failure never becomes a number.
        KeyError: a logit, its moments or its number of tokens is missing.
    """
    terms = weigh_logits(blend, logits, moments, completion_tokens)
    # fsum rounds only once, so the order of the signals does not change the score.
    finite = all(map(math.isfinite, [*logits.values(), *terms.values()]))
    if not finite or not math.isfinite(score := math.fsum(terms.values())):
        raise NotFinite("the score is not a finite number, so it is not returned; check the weights of the checkpoint")
    return score


def weigh_logits(
    blend: Blend, logits: Mapping[str, float], moments: Mapping[str, Moments], completion_tokens: Mapping[str, int]
) -> dict[str, float]:
    """Return the terms whose sum is the score: `w_s · x_s` keyed by signal, and the penalty at `LENGTH_TERM`.

    The arguments are those of `blend_logits`.
    """
    terms = {}
    for signal, weight in blend.weights.items():
        value = logits[signal]
        if blend.standardise == "manifest":
            value = (value - moments[signal].mean) / moments[signal].std
        terms[signal] = weight * value
    if (penalty := blend.length_penalty) is not None:
        terms[LENGTH_TERM] = -penalty.per_token * completion_tokens[penalty.signal]
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
