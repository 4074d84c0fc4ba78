"""The losses of [CRS] section 5.3 against numbers worked out by hand and against loops of the standard library."""

import math

import pytest
import torch
from jaxtyping import TypeCheckError

from assay_training.algorithms.losses import (
    compute_batch_mean_margins,
    compute_bradley_terry,
    compute_next_token_cross_entropy,
    compute_raw_squared_error,
    compute_sigmoid_squared_error,
    compute_soft_label_cross_entropy,
    compute_squared_logits,
    compute_squared_sums,
)


def in_order(logits: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Margins, no target margins, and weights of prompts whose completions are listed best first: all C(K, 2) pairs,
    averaged per prompt, then over prompts."""
    better, worse, weights, offset = [], [], [], 0
    for row in logits:
        for i in range(len(row)):
            for j in range(i + 1, len(row)):
                better.append(offset + i)
                worse.append(offset + j)
                weights.append(1 / math.comb(len(row), 2) / len(logits))
        offset += len(row)
    flat = torch.tensor([logit for row in logits for logit in row])
    margins = flat[torch.tensor(better)] - flat[torch.tensor(worse)]
    return margins, torch.zeros_like(margins), torch.tensor(weights)


def slow_loss(logits: list[list[float]]) -> float:
    """(2.12), one pair after the other."""
    prompts = []
    for row in logits:
        losses = [
            -math.log(1 / (1 + math.exp(-(row[i] - row[j])))) for i in range(len(row)) for j in range(i + 1, len(row))
        ]
        prompts.append(sum(losses) / len(losses))
    return sum(prompts) / len(prompts)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([[0.0, 0.0]], 0.6931472),
        ([[1.0, 0.0]], 0.3132617),
        ([[0.0, 1.0]], 1.3132617),
        ([[2.0, 1.0, 0.0]], 0.2511505),  # (2 · 0.3132617 + 0.1269280) / 3
        ([[3.0, 2.0, 1.0, 0.0]], 0.2070381),  # (3 · 0.3132617 + 2 · 0.1269280 + 0.0485874) / 6
        ([[1.0, 0.0], [3.0, 2.0, 1.0, 0.0]], 0.2601499),  # the prompts weigh the same, not the seven pairs
    ],
)
def test_bradley_terry_is_the_mean_over_pairs_then_over_prompts(logits: list[list[float]], expected: float) -> None:
    assert float(compute_bradley_terry(*in_order(logits))) == pytest.approx(expected, abs=1e-6)
    assert slow_loss(logits) == pytest.approx(expected, abs=1e-6)


def test_bradley_terry_agrees_with_a_slow_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [(torch.randn(k, generator=generator) * 3).tolist() for k in (2, 3, 4, 2, 4)]
    assert float(compute_bradley_terry(*in_order(logits))) == pytest.approx(slow_loss(logits), rel=1e-6)


def test_bradley_terry_pushes_the_better_up_and_the_worse_down() -> None:
    logits = torch.tensor([0.5, -0.5], requires_grad=True)
    compute_bradley_terry(logits[:1] - logits[1:], torch.zeros(1), torch.ones(1)).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([-0.2689414, 0.2689414], abs=1e-6)  # ∓σ(-1)


@pytest.mark.parametrize(
    ("label", "logit", "expected"),
    [
        (0.25, 0.0, 0.6931472),
        (1.0, 0.0, 0.6931472),
        (1.0, 2.0, 0.1269280),
        (0.0, 2.0, 2.1269280),
        (0.5, 2.0, 1.1269280),
        (0.25, 1.0986123, 1.1116413),  # σ(ln 3) = 3/4: -(1/4 · ln 3/4 + 3/4 · ln 1/4)
        (0.25, -1.0986123, 0.5623351),  # at its own label: the entropy of 1/4
    ],
)
def test_soft_label_cross_entropy_of_one_row(label: float, logit: float, expected: float) -> None:
    loss = compute_soft_label_cross_entropy(torch.tensor([logit]), torch.tensor([label]), torch.ones(1))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_soft_label_cross_entropy_is_the_weighted_sum_of_the_rows() -> None:
    logits, labels, weights = [-2.0, 0.3, 1.7, 4.0], [0.0, 1 / 3, 1.0, 0.9], [0.1, 0.2, 0.3, 0.4]
    slow = 0.0
    for logit, label, weight in zip(logits, labels, weights, strict=True):
        p = 1 / (1 + math.exp(-logit))
        slow -= weight * (label * math.log(p) + (1 - label) * math.log(1 - p))
    loss = compute_soft_label_cross_entropy(torch.tensor(logits), torch.tensor(labels), torch.tensor(weights))
    assert float(loss) == pytest.approx(slow, rel=1e-6)


def test_extreme_logits_stay_finite() -> None:
    """σ rounds to 0 or 1 there, and the logarithm of 0 is not a loss."""
    far = torch.tensor([1e4, -1e4])
    assert float(compute_soft_label_cross_entropy(far, torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]))) == 1e4
    assert float(compute_soft_label_cross_entropy(far, torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))) == 0.0
    assert float(compute_bradley_terry(torch.tensor([-2e4]), torch.zeros(1), torch.ones(1))) == 2e4
    assert float(compute_sigmoid_squared_error(far, torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]))) == 1.0


MARGINS = [2.0, 1.0, 0.0, -1.0]  # their mean is 1/2


def mean_of(margins: torch.Tensor) -> torch.Tensor:
    return margins.mean().detach()


def test_a_labelled_margin_is_subtracted_inside_the_loss() -> None:
    """(3): -log σ(1 - 1/3) = 0.4143701, -log σ(1 - 1) = ln 2, -log σ(1 - 3) = 2.1269280."""
    margins, targets = torch.ones(3), torch.tensor([1 / 3, 1.0, 3.0])
    for i, expected in enumerate((0.4143701, 0.6931472, 2.1269280)):
        loss = compute_bradley_terry(margins[i : i + 1], targets[i : i + 1], torch.ones(1))
        assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_the_mean_margin_alone() -> None:
    """(4) and (5): d - μ = 1.5, 0.5, -0.5, -1.5; (0.2014133 + 0.4740770 + 0.9740770 + 1.7014133) / 4."""
    margins = torch.tensor(MARGINS)
    loss = compute_bradley_terry(margins, mean_of(margins).expand(4), torch.full((4,), 0.25))
    assert float(loss) == pytest.approx(0.8377451, abs=1e-6)


def test_the_mean_margin_with_threshold() -> None:
    """(6) and (7): the upper two keep d: (0.1269280 + 0.3132617 + 0.9740770 + 1.7014133) / 4."""
    margins = torch.tensor(MARGINS)
    targets = compute_batch_mean_margins(margins, mean_of(margins))
    assert targets.tolist() == [0.0, 0.0, 0.5, 0.5]
    assert float(compute_bradley_terry(margins, targets, torch.full((4,), 0.25))) == pytest.approx(0.7789200, abs=1e-6)


def test_a_margin_at_the_mean_keeps_itself() -> None:
    assert compute_batch_mean_margins(torch.tensor([1.0, 1.0]), torch.tensor(1.0)).tolist() == [0.0, 0.0]


def test_a_mean_that_is_not_detached_has_gradients_that_sum_to_zero() -> None:
    """Why it is: (4) could not raise the mean margin otherwise. Detached, every pair is pushed up."""
    margins = torch.tensor(MARGINS, requires_grad=True)
    compute_bradley_terry(margins, margins.mean().expand(4), torch.full((4,), 0.25)).backward()  # type: ignore[no-untyped-call]
    assert margins.grad is not None
    assert float(margins.grad.sum()) == pytest.approx(0.0, abs=1e-7)
    assert float(margins.grad.abs().max()) > 0.05
    with pytest.raises(ValueError, match="carries a gradient"):
        compute_batch_mean_margins(margins, margins.mean())
    margins.grad = None
    targets = compute_batch_mean_margins(margins, mean_of(margins))
    compute_bradley_terry(margins, targets, torch.full((4,), 0.25)).backward()  # type: ignore[no-untyped-call]
    assert margins.grad is not None
    assert max(margins.grad.tolist()) < 0
    assert not targets.requires_grad


@pytest.mark.parametrize(
    ("logit", "label", "expected"),
    [(0.0, 0.5, 0.0), (0.0, 1.0, 0.25), (1.0986123, 0.25, 0.25), (-1.0986123, 1.0, 0.5625)],
)
def test_the_squared_error_of_the_sigmoid(logit: float, label: float, expected: float) -> None:
    loss = compute_sigmoid_squared_error(torch.tensor([logit]), torch.tensor([label]), torch.ones(1))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("prediction", "label", "expected"),
    [(0.5, 0.25, 0.0625), (1.5, 1.0, 0.26), (-0.5, 0.0, 0.26), (3.0, 0.5, 6.29), (1.0, 1.0, 0.0), (0.0, 0.0, 0.0)],
)
def test_the_squared_error_of_the_raw_output_with_its_penalty(prediction: float, label: float, expected: float) -> None:
    """(p - y)² + 0.02 · what p exceeds 0..1 by: 0.25 + 0.02 · 0.5; 6.25 + 0.02 · 2."""
    loss = compute_raw_squared_error(torch.tensor([prediction]), torch.tensor([label]), torch.ones(1))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_the_two_regularisers() -> None:
    better, worse, weights = torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 0.0]), torch.tensor([0.5, 0.5])
    assert float(compute_squared_logits(better, worse, weights)) == pytest.approx(0.5 * 2.5 + 0.5 * 0.5)
    assert float(compute_squared_sums(better, worse, weights)) == pytest.approx(1.0)


def test_the_next_token_loss_is_the_weighted_sum() -> None:
    assert float(compute_next_token_cross_entropy(torch.tensor([-1.0, -3.0]), torch.tensor([0.5, 0.25]))) == 1.25


def test_shapes_that_would_broadcast_are_refused() -> None:
    """ms-swift#9927: margins [B, 1] minus [B] are [B, B], silently. The hook in `tests/conftest.py` sees it."""
    with pytest.raises(TypeCheckError, match="parameter 'target_margins'"):
        compute_bradley_terry(torch.zeros(3), torch.zeros(3, 1), torch.ones(3))
    with pytest.raises(TypeCheckError, match="parameter 'logits'"):
        compute_soft_label_cross_entropy(torch.zeros(3, 1), torch.zeros(3, 1), torch.ones(3, 1))
    with pytest.raises(TypeCheckError, match="parameter 'labels'"):
        compute_raw_squared_error(torch.zeros(3), torch.zeros(1), torch.ones(3))
