"""Blend, rank, compare: pure numbers."""

import math

import pytest

from assay_service.errors import NotFinite
from assay_service.scoring.blend import (
    Blend,
    LengthPenalty,
    Moments,
    Place,
    blend_logits,
    compute_probability,
    rank_scores,
)

LOGITS = {"preference": 2.0, "absolute": -1.0}


def test_crs_is_a_quarter_preference_and_three_quarters_absolute() -> None:
    assert blend_logits(Blend("crs", {"preference": 0.25, "absolute": 0.75}), LOGITS, {}, {}) == -0.25


def test_weights_are_used_as_they_are() -> None:
    assert blend_logits(Blend("custom", {"preference": 2.0, "absolute": 2.0}), LOGITS, {}, {}) == 2.0


def test_standardised_blend_takes_the_manifests_moments() -> None:
    """Trap 24: without it the signal with the larger spread decides."""
    moments = {"preference": Moments(2.26, 2.0), "absolute": Moments(0.86, 0.5)}
    blend = Blend("crs_std", {"preference": 0.25, "absolute": 0.75}, "manifest")
    assert blend_logits(blend, LOGITS, moments, {}) == pytest.approx(0.25 * -0.13 + 0.75 * -3.72)


def test_a_negative_weight_makes_a_signal_a_cost() -> None:
    """The reward of a cost model: helpful minus half of the cost; a costlier completion ranks lower."""
    blend = Blend("safe", {"helpful": 1.0, "cost": -0.5})
    scores = {
        index: blend_logits(blend, {"helpful": helpful, "cost": cost}, {}, {})
        for index, (helpful, cost) in enumerate([(2.0, 3.0), (1.5, -1.0), (0.25, -4.0)])
    }
    assert scores == {0: 0.5, 1: 2.0, 2: 2.25}
    assert rank_scores(scores) == [Place(2, 0.25), Place(1, 1.5), Place(0, None)]
    assert (
        blend_logits(Blend("x", {"a": 1.0, "b": -1.0}), {"a": 0.75, "b": 0.5}, {}, {}) == 0.25
    )  # weights that sum to 0


def test_a_standardised_cost_is_scaled_before_its_sign() -> None:
    blend = Blend("x", {"cost": -2.0}, "manifest")
    assert blend_logits(blend, {"cost": 5.0}, {"cost": Moments(1.0, 2.0)}, {}) == -4.0


def test_a_length_penalty_is_subtracted_for_each_token_of_its_signal() -> None:
    blend = Blend("short", {"preference": 1.0, "absolute": -1.0}, "none", LengthPenalty(0.25, "absolute"))
    assert blend_logits(blend, LOGITS, {}, {"preference": 1000, "absolute": 10}) == 2.0 + 1.0 - 2.5
    assert blend_logits(blend, LOGITS, {}, {"preference": 0, "absolute": 0}) == 3.0


def test_standardising_does_not_scale_the_length_penalty() -> None:
    blend = Blend("short", {"preference": 2.0}, "manifest", LengthPenalty(0.5, "preference"))
    assert blend_logits(blend, {"preference": 5.0}, {"preference": Moments(1.0, 4.0)}, {"preference": 3}) == 2.0 - 1.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_failure_never_becomes_a_number(bad: float) -> None:
    """Also where its weight is zero, which would hide it: 0 · NaN."""
    with pytest.raises(NotFinite):
        blend_logits(Blend("x", {"preference": 1.0, "absolute": 0.0}), {"preference": 1.0, "absolute": bad}, {}, {})


def test_a_sum_beyond_the_floats_is_an_error() -> None:
    with pytest.raises(NotFinite):
        blend_logits(Blend("x", {"preference": 1e308}), {"preference": 1e10}, {}, {})


def test_probability_is_float64_and_does_not_overflow() -> None:
    """[CRS] table 5.4: σ(0.8067) = .6914 and σ(-0.6642) = .3398; float32 would be 1.0 from 17 on (trap 12)."""
    assert compute_probability(0.8067) == pytest.approx(0.6914, abs=5e-5)
    assert compute_probability(-0.6642) == pytest.approx(0.3398, abs=5e-5)
    assert compute_probability(17.0) < 1.0
    assert compute_probability(-1000.0) == 0.0
    assert compute_probability(1000.0) == 1.0


def test_ranking_with_ties_by_index_and_margins_to_the_next() -> None:
    assert rank_scores({0: 1.0, 1: 3.0, 2: 1.0, 5: -1.5}) == [
        Place(1, 2.0),
        Place(0, 0.0),
        Place(2, 2.5),
        Place(5, None),
    ]
    assert rank_scores({}) == []
