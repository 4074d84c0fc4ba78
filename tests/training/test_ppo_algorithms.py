"""PPO's tensors: literal numbers, and a slow second implementation token by token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay_training.algorithms.ppo import (
    adapt_kl_coef,
    compute_gae,
    compute_importance_weights,
    compute_masked_sums,
    compute_policy_losses,
    compute_token_rewards,
    compute_value_losses,
    estimate_k1,
    estimate_k2,
    estimate_k3,
    exceeds_ratio_limit,
    shape_scores,
    whiten,
)
from assay_training.algorithms.schedule import draw_cyclic_batch
from assay_training.rl.engine_check import compute_mismatch_limit

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_the_estimators_of_kl() -> None:
    """At log π = ln ½, log π_ref = ln ¼: k1 = ln 2, k2 = ln² 2 / 2, k3 = ½ − 1 + ln 2."""
    half, quarter = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert [float(k(half, quarter)) for k in (estimate_k1, estimate_k2, estimate_k3)] == pytest.approx(
        [0.693147, 0.240227, 0.193147], abs=1e-6
    )
    assert [float(k(half, half)) for k in (estimate_k1, estimate_k2, estimate_k3)] == [0, 0, 0]


def test_k1_and_k3_are_the_kl_on_average() -> None:
    """Over the tokens of a small vocabulary, each as likely as the policy has it."""
    policy, reference = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.5, 0.25, 0.25]).log()
    kl = float((policy.exp() * (policy - reference)).sum())
    for estimator in (estimate_k1, estimate_k3):
        assert float((policy.exp() * estimator(policy, reference)).sum()) == pytest.approx(kl, abs=1e-6)


def test_scores_are_clipped_and_truncated_completions_are_penalised() -> None:
    scores, finished = torch.tensor([5.0, -1.0, -9.0]), torch.tensor([True, False, False])
    assert shape_scores(scores, finished, clip=4, missing_eos_penalty=1).tolist() == [4, -2, -5]
    assert shape_scores(scores, finished, clip=None, missing_eos_penalty=0).tolist() == [5, -1, -9]


def test_the_score_is_the_reward_of_the_last_completion_token() -> None:
    """Also of a completion of one token; what does not count, counts nothing, NaN excepted."""
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 9.0, 9.0]])
    reference = torch.tensor([[-1.5, -2.0, -2.0], [-2.0, 0.0, 0.0]])
    found = compute_token_rewards(torch.tensor([2.0, -1.0]), logprobs, reference, MASK, kl_coef=0.1)
    assert torch.allclose(found, torch.tensor([[-0.05, 0.0, 2.1], [-1.1, 0.0, 0.0]]))


def test_advantages_by_hand() -> None:
    """γ = 1, λ = 0.95: δ = (0.5, 0.5, 1), A₃ = 1, A₂ = 0.5 + 0.95, A₁ = 0.5 + 0.95 · 1.45."""
    rewards = torch.tensor([[0.0, 0.0, 2.0], [1.0, 0.0, 0.0]])
    values = torch.tensor([[0.0, 0.5, 1.0], [0.25, 7.0, 7.0]])
    found = compute_gae(rewards, values, MASK, gamma=1, gae_lambda=0.95)
    assert torch.allclose(found, torch.tensor([[1.8775, 1.45, 1.0], [0.75, 0.0, 0.0]]))


floats = st.floats(-3, 3, width=32)


@st.composite
def completions(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]]]:
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    rows = [[draw(st.lists(floats, min_size=n, max_size=n)) for n in lengths] for _ in range(2)]
    return rows[0], rows[1]


@given(completions(), st.floats(0, 1), st.floats(0, 1))
def test_advantages_are_sums_of_discounted_errors(
    given_: tuple[list[list[float]], list[list[float]]], gamma: float, gae_lambda: float
) -> None:
    rewards, values = given_
    width = max(map(len, rewards))
    padded = [torch.tensor([row + [99.0] * (width - len(row)) for row in rows]) for rows in (rewards, values)]
    mask = torch.tensor([[k < len(row) for k in range(width)] for row in rewards])
    found = compute_gae(padded[0], padded[1], mask, gamma=gamma, gae_lambda=gae_lambda)
    for i, (r, v) in enumerate(zip(rewards, values, strict=True)):
        errors = [r[t] + gamma * (v[t + 1] if t + 1 < len(v) else 0) - v[t] for t in range(len(r))]
        for t in range(len(r)):
            slow = sum((gamma * gae_lambda) ** k * error for k, error in enumerate(errors[t:]))
            assert float(found[i, t]) == pytest.approx(slow, abs=1e-4)
        assert not found[i, len(r) :].any()


def test_with_lambda_one_returns_are_the_sums_of_rewards() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.3, -0.2, 0.9]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    returns = compute_gae(rewards, values, mask, gamma=1, gae_lambda=1) + values
    assert torch.allclose(returns, torch.tensor([[6.0, 5.0, 3.0]]))


def test_whitening_covers_the_masked_values_only() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [6.0, 1e6, -1e6]])
    found = whiten(values, MASK, compute_masked_sums(values, MASK))
    counted = found[MASK]
    assert counted.tolist() == pytest.approx([-2 / 3.5**0.5, -1 / 3.5**0.5, 0, 3 / 3.5**0.5])
    assert not found[~MASK].any()
    assert not whiten(torch.ones(2, 3), MASK, compute_masked_sums(torch.ones(2, 3), MASK)).any()


def test_two_processes_whiten_as_one() -> None:
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True], [True, False, False]] * 2)
    together = compute_masked_sums(values[:2], mask[:2]) + compute_masked_sums(values[2:], mask[2:])
    assert torch.equal(whiten(values, mask, compute_masked_sums(values, mask)), whiten(values, mask, together))


def test_the_policy_loss_is_clipped_where_clipping_hurts() -> None:
    """Ratios 1, 1.5 and 0.5 at clip 0.4; with A > 0 only growing is clipped, with A < 0 only shrinking."""
    old = torch.zeros(3)
    new = torch.tensor([1.0, 1.5, 0.5]).log()
    assert compute_policy_losses(new, old, torch.full((3,), 2.0), 0.4).tolist() == pytest.approx([-2, -2.8, -1])
    assert compute_policy_losses(new, old, torch.full((3,), -2.0), 0.4).tolist() == pytest.approx([2, 3, 1.2])


def test_the_value_loss_takes_the_worse_of_both() -> None:
    values, old, returns = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0])
    assert compute_value_losses(values, old, returns, 0.4).tolist() == pytest.approx([0.18, 0.5])


def test_importance_weights_are_truncated() -> None:
    assert compute_importance_weights(torch.tensor([0.0, 0.0]), torch.tensor([0.0, -5.0]), 3.0).tolist() == [1, 3]


def test_a_ratio_above_the_limit_or_not_finite_is_too_large() -> None:
    given = (1.0, 10.0, 10.1, math.inf, math.nan)
    assert [exceeds_ratio_limit(ratio, 10) for ratio in given] == [False, False, True, True, True]


def test_a_mismatch_may_be_ten_times_its_floor_and_never_above_the_maximum() -> None:
    assert [compute_mismatch_limit(floor, 0.1) for floor in (None, 0.0, 1e-6, 8e-3, 0.05)] == pytest.approx(
        [0.1, 1e-4, 1.1e-4, 0.0801, 0.1]
    )


def test_the_coefficient_is_steered_to_its_target() -> None:
    """At most a fifth of n / horizon a step: the 562 steps of [CRS] of 16 give × 1.20 at most."""
    assert adapt_kl_coef(0.02, 6.0, 16, target=6, horizon=10000) == 0.02
    assert adapt_kl_coef(0.02, 6.6, 16, target=6, horizon=10000) == pytest.approx(0.02 * (1 + 0.1 * 0.0016))
    coefficient = 0.02
    for _ in range(562):
        coefficient = adapt_kl_coef(coefficient, 600.0, 16, target=6, horizon=10000)
    assert coefficient == pytest.approx(0.02 * 1.00032**562)
    assert coefficient / 0.02 == pytest.approx(1.197, abs=1e-3)


def test_cyclic_batches_cover_every_prompt_before_one_repeats() -> None:
    """Seven steps of three of seven things are three passes, each over all of them, in orders of their own."""
    seen = [i for step in range(7) for i in draw_cyclic_batch(7, 3, step, seed=5)]
    passes = [seen[start : start + 7] for start in range(0, 21, 7)]
    assert [sorted(order) for order in passes] == [list(range(7))] * 3
    assert len({tuple(order) for order in passes}) == 3
