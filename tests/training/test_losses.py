"""The losses against numbers worked out by hand and against slow loops with the standard library (seeds §4, §5)."""

import math

import pytest
import torch

from assay_training.algorithms.losses import bradley_terry, soft_label_cross_entropy


def in_order(logits: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prompts whose completions are listed best first: all C(K, 2) pairs, averaged per prompt, then over prompts."""
    better, worse, weights, offset = [], [], [], 0
    for row in logits:
        for i in range(len(row)):
            for j in range(i + 1, len(row)):
                better.append(offset + i)
                worse.append(offset + j)
                weights.append(1 / math.comb(len(row), 2) / len(logits))
        offset += len(row)
    flat = [logit for row in logits for logit in row]
    return torch.tensor(flat), torch.tensor(better), torch.tensor(worse), torch.tensor(weights)


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
    assert float(bradley_terry(*in_order(logits))) == pytest.approx(expected, abs=1e-6)
    assert slow_loss(logits) == pytest.approx(expected, abs=1e-6)


def test_bradley_terry_agrees_with_a_slow_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [(torch.randn(k, generator=generator) * 3).tolist() for k in (2, 3, 4, 2, 4)]
    assert float(bradley_terry(*in_order(logits))) == pytest.approx(slow_loss(logits), rel=1e-6)


def test_bradley_terry_pushes_the_better_up_and_the_worse_down() -> None:
    logits, better, worse, weights = in_order([[0.5, -0.5]])
    logits.requires_grad_()
    bradley_terry(logits, better, worse, weights).backward()  # type: ignore[no-untyped-call]
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
    loss = soft_label_cross_entropy(torch.tensor([logit]), torch.tensor([label]), torch.ones(1))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_soft_label_cross_entropy_is_the_weighted_sum_of_the_rows() -> None:
    logits, labels, weights = [-2.0, 0.3, 1.7, 4.0], [0.0, 1 / 3, 1.0, 0.9], [0.1, 0.2, 0.3, 0.4]
    slow = 0.0
    for logit, label, weight in zip(logits, labels, weights, strict=True):
        p = 1 / (1 + math.exp(-logit))
        slow -= weight * (label * math.log(p) + (1 - label) * math.log(1 - p))
    loss = soft_label_cross_entropy(torch.tensor(logits), torch.tensor(labels), torch.tensor(weights))
    assert float(loss) == pytest.approx(slow, rel=1e-6)


def test_extreme_logits_stay_finite() -> None:
    """σ rounds to 0 or 1 there, and the logarithm of 0 is no loss."""
    far = torch.tensor([1e4, -1e4])
    assert float(soft_label_cross_entropy(far, torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]))) == 1e4
    assert float(soft_label_cross_entropy(far, torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))) == 0.0
    assert float(bradley_terry(far, torch.tensor([1]), torch.tensor([0]), torch.ones(1))) == 2e4
