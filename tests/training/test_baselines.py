"""What a model is held against: the frozen encoder's linear head and the length."""

import math
from pathlib import Path

import pytest
import torch

from assay_service.scoring.head import Head
from assay_service.scoring.model import RewardModel
from assay_training.algorithms.folds import HELD_OUT
from assay_training.data.examples import Example, render_records
from assay_training.records.record import Judged, Labelled, Ranking
from assay_training.reward_model.baselines import (
    LinearData,
    compute_frozen_features,
    compute_length_features,
    compute_length_logits,
    fit_length,
    predict_by_linear_head,
    predict_out_of_fold,
)
from tests import checkpoints
from tests.training import tiny
from tests.training.tiny import fake_ids, labelled, ranking

WIDTH = 6


def planted(count: int, *, pairs: bool, seed: int = 0) -> tuple[list[torch.Tensor], list[Example], list[int]]:
    """Random features, records whose labels are linear in them, and folds -1 0 1 2 in turn."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(WIDTH, generator=generator)
    features, examples = [], []
    for i in range(count):
        rows = torch.randn(3 if pairs else 1, WIDTH, generator=generator) * 5 + 100
        truth = ((rows - 100) @ direction).tolist()
        if pairs:
            order = tuple((a, b) for a in range(3) for b in range(3) if truth[a] > truth[b])
            examples.append(fake_ids(ranking(str(i), "abc", order), 1, 1, 1))
        else:
            examples.append(fake_ids(labelled(str(i), "a", float(truth[0] > 0)), 1))
        features.append(rows)
    return features, examples, [i % 4 - 1 for i in range(count)]


def accuracy(logits: list[list[float] | None], examples: list[Example]) -> float:
    hits = []
    for row, example in zip(logits, examples, strict=True):
        if row is None:
            continue
        if isinstance(example.record, Ranking):
            hits += [row[pair.better] > row[pair.worse] for pair in example.record.pairs]
        else:
            hits.append((row[0] > 0) == (example.record.label == 1.0))
    return sum(hits) / len(hits)


@pytest.mark.parametrize("pairs", [True, False])
def test_a_planted_linear_signal_is_recovered(pairs: bool) -> None:
    features, examples, folds = planted(200, pairs=pairs)
    logits = predict_out_of_fold(features, examples, folds, range(3))
    assert [row is None for row in logits] == [fold == HELD_OUT for fold in folds]
    assert accuracy(logits, examples) > 0.95


def test_features_without_signal_give_chance() -> None:
    """Nothing of the tested fold leaks into its fit."""
    features, examples, folds = planted(400, pairs=False)
    noise = [torch.randn(rows.shape, generator=torch.Generator().manual_seed(i)) for i, rows in enumerate(features)]
    assert abs(accuracy(predict_out_of_fold(noise, examples, folds, range(3)), examples) - 0.5) < 0.1


@pytest.mark.parametrize("pairs", [True, False])
def test_a_folds_logits_do_not_depend_on_its_own_labels(pairs: bool) -> None:
    features, examples, folds = planted(80, pairs=pairs)
    flipped = [flip(example) if fold == 1 else example for example, fold in zip(examples, folds, strict=True)]
    before = predict_out_of_fold(features, examples, folds, range(3))
    after = predict_out_of_fold(features, flipped, folds, range(3))
    for i, fold in enumerate(folds):
        assert (before[i] == after[i]) is (fold in (HELD_OUT, 1)), fold


def flip(example: Example) -> Example:
    """The same with the opposite labels."""
    record = example.record
    if isinstance(record, Labelled):
        return Example(labelled(record.group, "a", 1 - record.label), example.sequences)
    pairs = tuple((pair.worse, pair.better) for pair in record.pairs)
    return Example(ranking(record.group, record.completions, pairs), example.sequences)


def test_only_the_tested_folds_get_logits() -> None:
    features, examples, folds = planted(80, pairs=False)
    logits = predict_out_of_fold(features, examples, folds, [2])
    assert [row is not None for row in logits] == [fold == 2 for fold in folds]
    for row, every in zip(logits, predict_out_of_fold(features, examples, folds, range(3)), strict=True):
        assert row in (None, every)


def test_the_development_part_chooses_the_penalty() -> None:
    """With signal in the training part and none in the development part, the strongest penalty wins: small logits."""
    features, examples, folds = planted(200, pairs=False)
    honest = predict_out_of_fold(features, examples, folds, [0])
    opposed = [flip(e) if fold == HELD_OUT else e for e, fold in zip(examples, folds, strict=True)]
    shrunk = predict_out_of_fold(features, opposed, folds, [0])
    sizes = [max(abs(row[0]) for row in logits if row is not None) for logits in (honest, shrunk)]
    assert sizes[1] < sizes[0] / 5


def test_the_loss_of_a_linear_head() -> None:
    """Logits 1 and 3 with bias 1; ln(1 + e^-2) and the mean of two cross-entropies."""
    features = [torch.tensor([[0.0, 1.0], [2.0, 1.0]])]
    weight, bias = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    pairs = LinearData.build(features, [fake_ids(ranking("a", "bc", ((1, 0),)), 1, 1)])
    assert float(pairs.loss(weight, bias)) == pytest.approx(0.1269280)
    halves = [rows[None] for rows in features[0]]
    labels = LinearData.build(halves, [fake_ids(labelled("a", "b", x), 1) for x in (1.0, 0.25)])
    assert float(labels.loss(weight, bias)) == pytest.approx((0.3132617 + 3.0485874 - 0.25 * 3) / 2, abs=1e-6)


def test_pairs_point_at_the_rows_of_their_own_example() -> None:
    examples = [fake_ids(ranking("a", "bcd", ((2, 0),)), 1, 1, 1), fake_ids(ranking("e", "fg", ((0, 1), (1, 0))), 1, 1)]
    data = LinearData.build([torch.zeros(3, 1), torch.ones(2, 1)], examples)
    assert data.better is not None
    assert data.worse is not None
    assert (data.better.tolist(), data.worse.tolist()) == ([2, 3, 4], [0, 4, 3])
    assert data.features.flatten().tolist() == [0, 0, 0, 1, 1]


def test_the_length_baseline_counts_the_completions_characters() -> None:
    examples = [fake_ids(ranking("a long prompt", ["", "yes", "é☃"]), 9, 1, 1)]
    assert compute_length_logits(examples)[0] == pytest.approx([0.0, math.log(4), math.log(3)])
    assert compute_length_features(examples)[0].shape == (3, 1)


def test_the_length_is_fitted_to_each_source_apart() -> None:
    """In both sources the longer is the better; the source of long completions has the worse ones."""
    sources = (("short", range(1, 9), 0.6), ("long", range(101, 109), 0.0))
    examples = [
        fake_ids(labelled(f"{name} {n}", "x" * n, level + 0.05 * i, source=name), 1)
        for name, counts, level in sources
        for i, n in enumerate(counts)
    ]
    logits = [row[0] for row in fit_length(examples, examples)]
    assert logits[:8] == sorted(logits[:8])
    assert logits[8:] == sorted(logits[8:])
    assert min(logits[:8]) > max(logits[8:])
    (unknown,) = fit_length(examples, [fake_ids(labelled("q", "x" * 50, 0.5, source="new"), 1)])
    assert all(map(math.isfinite, unknown))


def test_one_record_is_enough_for_a_baseline_that_is_a_number() -> None:
    examples = [fake_ids(labelled("q", "abc", 0.5), 1)]
    assert fit_length(examples, examples)[0] == pytest.approx([0.0], abs=1e-6)


def test_frozen_features_are_the_mean_hidden_state_of_the_bare_base(tmp_path: Path) -> None:
    """Against transformers' own forward, one text at a time."""
    base = tiny.save_base(tmp_path)
    model = RewardModel.load(base, torch.float32, torch.device("cpu"))
    model.add_signal("frozen", Head(torch.ones(1, model.hidden_size), None))
    records: list[Judged] = [ranking("hi", ["yes and no " * 5, "no"]), labelled("bake bread?", "mix", 1.0)]
    examples, _ = render_records(records, tiny.renderer(score_position="first_token"))
    oracle = checkpoints.classifier("bert", checkpoints.encoder_tokenizer()).base_model
    oracle.set_attn_implementation("eager")
    features = compute_frozen_features(model, "frozen", examples, tiny.optimizer(micro_batch_tokens=20))
    assert [rows.shape[0] for rows in features] == [2, 1]
    for rows, example in zip(features, examples, strict=True):
        for row, sequence in zip(rows, example.sequences, strict=True):
            with torch.inference_mode():
                hidden = oracle(input_ids=torch.tensor([sequence.ids])).last_hidden_state[0]
            torch.testing.assert_close(row, hidden.mean(dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pairs", [True, False])
def test_a_head_fitted_on_training_records_recovers_a_planted_signal_in_others(pairs: bool) -> None:
    features, examples, _ = planted(200, pairs=pairs)
    logits = predict_by_linear_head(features[:150], examples[:150], features[150:], seed=0)
    assert [len(row) for row in logits] == [3 if pairs else 1] * 50
    assert accuracy(list(logits), examples[150:]) > 0.9
    mirrored = [200 - rows for rows in features[:150]]  # about their mean, so that the labels are turned round
    turned = predict_by_linear_head(mirrored, examples[:150], features[150:], seed=0)
    assert accuracy(list(turned), examples[150:]) < 0.1
