"""Test a trained model on the held-out groups beside its baselines, and write the results."""

from collections.abc import Sequence
from importlib.metadata import version

import torch

from assay_training.algorithms.folds import HELD_OUT
from assay_training.data.examples import Example
from assay_training.evaluation import plots
from assay_training.evaluation.results import FROZEN, LENGTH, MODEL, compute_results
from assay_training.evaluation.rows import Logits, Rows
from assay_training.reward_model.baselines import (
    compute_frozen_features,
    load_frozen_base,
    predict_by_linear_head,
    predict_length,
)
from assay_training.reward_model.card import CardFacts, Results
from assay_training.reward_model.checks import is_trainable
from assay_training.reward_model.run import RewardRun


def write_results(reward: RewardRun, stored: Logits) -> Results:
    """Write `results.json` and the plot of margins of a model on the held-out groups, and return the results.

    Args:
        reward: run of the model.
        stored: logits of the held-out examples.
    """
    held_out = reward.select_part(HELD_OUT)
    contenders = {MODEL: stored, LENGTH: predict_length(reward.exclude_parts(HELD_OUT), held_out)}
    if reward.config.split.frozen_head is not None:
        contenders[FROZEN] = _predict_frozen_head(reward, reward.config.split.frozen_head)
    rows = Rows.of([example.record for example in held_out], contenders)
    results = compute_results(rows, reward.config.objective, reward.config.seed)
    reward.run.write_json("results.json", results)
    if rows.labels is None and reward.run.writes:
        plots.draw_margins(rows, MODEL).savefig(reward.run.path / "margins.png", dpi=120)
    return results


def collect_facts(reward: RewardRun) -> CardFacts:
    """Collect what the card of a run states besides its results."""
    return CardFacts(
        config=reward.config,
        data_sha256=reward.run.read_json("run.json")["data_sha256"],
        rendering=reward.run.read_json("render.json"),
        examples=len(reward.examples),
        versions={name: version(name) for name in ("torch", "transformers", "peft")},
    )


def _predict_frozen_head(reward: RewardRun, records: int) -> Logits:
    """Return the held-out logits of a linear head on the frozen base, or those that an interrupted run stored.

    Args:
        reward: run whose base is used.
        records: largest number of training records that the head is fitted on.
    """
    name = f"frozen_head_{records}.json"  # the number may change between calls
    stored: Logits | None = reward.run.read_json(name)
    if stored is None:
        training, held_out = _draw(reward, records), reward.select_part(HELD_OUT)
        model = load_frozen_base(reward.base, reward.device, reward.config.optimizer)
        features = compute_frozen_features(model, "frozen", [*training, *held_out], reward.config.optimizer)
        cut = len(training)
        stored = predict_by_linear_head(features[:cut], training, features[cut:], reward.config.seed)
        reward.run.write_json(name, stored)
    return stored


def _draw(reward: RewardRun, records: int) -> Sequence[Example]:
    """Return at most `records` random training examples that have something to fit."""
    training = [example for example in reward.exclude_parts(HELD_OUT) if is_trainable(example.record)]
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(reward.config.seed))
    return [training[i] for i in order[:records].tolist()]
