"""Cross-validate a reward model: train the served model, predict out of fold, and report. Each step is resumable."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from assay_training.algorithms.folds import HELD_OUT
from assay_training.evaluation import plots
from assay_training.evaluation.results import FROZEN, LENGTH, MODEL, compute_results
from assay_training.evaluation.rows import Rows
from assay_training.reward_model.baselines import (
    compute_frozen_features,
    load_frozen_base,
    predict_length,
    predict_out_of_fold,
)
from assay_training.reward_model.card import CARD, render_card
from assay_training.reward_model.held_out import collect_facts
from assay_training.reward_model.prediction import finish_training
from assay_training.reward_model.run import RewardRun
from assay_training.reward_model.saving import save_heads


class CrossValidation:
    """The k-fold cross-validation of a reward-model run.

    Args:
        reward: run whose split has folds.
    """

    def __init__(self, reward: RewardRun) -> None:
        split = reward.config.split
        assert split.folds is not None
        assert split.test_folds is not None
        self.reward = reward
        self.folds, self.tested = range(split.folds), range(split.test_folds)

    def predict_contenders(self) -> dict[str, list[list[float] | None]]:
        """Return the out-of-fold logits of the model and its baselines; None for untested examples."""
        reward = self.reward
        return {
            MODEL: self._collect_out_of_fold(self._predict_fold),
            FROZEN: self._predict_frozen_head(),
            LENGTH: self._collect_out_of_fold(
                lambda fold: predict_length(reward.exclude_parts(HELD_OUT, fold), reward.select_part(fold))
            ),
        }

    def _collect_out_of_fold(self, predict_fold: Callable[[int], list[list[float]]]) -> list[list[float] | None]:
        """Return each example's logits by `predict_fold`, which returns those of a fold; None if not tested."""
        logits: list[list[float] | None] = [None] * len(self.reward.examples)
        # The logits are put back into the order of all examples.
        for fold in self.tested:
            predicted = iter(predict_fold(fold))
            for i, part in enumerate(self.reward.parts):
                if part == fold:
                    logits[i] = next(predicted)
        return logits

    def train_final(self) -> Path:
        """Train on all examples, write the checkpoint that is served, and return its directory."""
        directory = self.reward.run.path / "checkpoint"
        if (directory / "assay.json").is_file():  # the manifest is written last: the checkpoint is complete
            return directory
        model = self.reward.fit("final", self.reward.exclude_parts())
        return save_heads(self.reward.run, model, [self.reward])

    def compute_frozen_features(self) -> list[torch.Tensor]:
        """Compute each example's mean hidden states of the frozen base: fp32 `[K, H]`."""
        settings = self.reward.config.optimizer
        model = load_frozen_base(self.reward.base, self.reward.device, settings)
        return compute_frozen_features(model, "frozen", self.reward.examples, settings)

    def _predict_fold(self, fold: int) -> list[list[float]]:
        """Return the logits of a fold by a model trained without it, or those that an interrupted run stored."""
        stored: list[list[float]] | None = self.reward.run.read_json(f"fold{fold}.json")
        if stored is None:
            model = self.reward.fit(f"fold{fold}", self.reward.exclude_parts(HELD_OUT, fold))
            finish_training(model, self.reward.config.optimizer)
            stored = self.reward.predict(model, self.reward.select_part(fold))
            self.reward.run.write_json(f"fold{fold}.json", stored)
        return stored

    def _predict_frozen_head(self) -> list[list[float] | None]:
        stored: list[list[float] | None] | None = self.reward.run.read_json("frozen_head.json")
        if stored is None:  # computed for every fold, because `test_folds` may change between calls
            stored = predict_out_of_fold(
                self.compute_frozen_features(), self.reward.examples, self.reward.parts, self.folds
            )
            self.reward.run.write_json("frozen_head.json", stored)
        return self._mask_untested(stored)

    def _mask_untested(self, logits: Sequence[list[float] | None]) -> list[list[float] | None]:
        """Return the logits with None for the examples that are not tested."""
        return [row if part in self.tested else None for row, part in zip(logits, self.reward.parts, strict=True)]


def cross_validate(reward: RewardRun, config_path: Path) -> None:
    """Write the checkpoint, the results of the tested folds, the margin plot and the model card."""
    cross_validation = CrossValidation(reward)
    checkpoint = cross_validation.train_final()
    contenders = cross_validation.predict_contenders()
    # All contenders are compared on the same examples.
    tested = [i for i, part in enumerate(reward.parts) if part in cross_validation.tested]
    rows = Rows.of(
        [reward.examples[i].record for i in tested],
        {name: [row for row in logits if row is not None] for name, logits in contenders.items()},
    )
    numbers = compute_results(rows, reward.config.objective, reward.config.seed)
    reward.run.write_json("results.json", numbers)
    if reward.run.writes:
        card = render_card([(collect_facts(reward), numbers)], reward.config, config_path)
        (checkpoint / CARD).write_text(card)
        if rows.labels is None:
            plots.draw_margins(rows, MODEL).savefig(reward.run.path / "margins.png", dpi=120)
    reward.run.forget()
