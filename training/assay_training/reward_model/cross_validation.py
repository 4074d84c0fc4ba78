"""Out-of-fold logits of a model and its baselines, then the model that is served, each step resumable."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from assay_service.scoring.head import Head
from assay_service.scoring.model import RewardModel
from assay_training.algorithms.folds import HELD_OUT
from assay_training.evaluation import plots
from assay_training.evaluation.results import FROZEN, LENGTH, MODEL, results
from assay_training.evaluation.rows import Rows
from assay_training.reward_model.baselines import frozen_features, length_fit, length_logits, out_of_fold
from assay_training.reward_model.card import CardFacts, card
from assay_training.reward_model.run import RewardRun


class CrossValidation:
    """Judges a run fold by fold.

    Args:
        reward: a run whose split has folds.
    """

    def __init__(self, reward: RewardRun) -> None:
        split = reward.config.split
        assert split.folds is not None
        assert split.test_folds is not None
        self.reward = reward
        self.folds, self.tested = range(split.folds), range(split.test_folds)

    def contenders(self) -> dict[str, list[list[float] | None]]:
        """Out-of-fold logits of the model and of its baselines."""
        reward = self.reward
        if reward.config.objective.kind == "absolute":  # labels have a scale, which the length must first be fitted to
            lengths = self._out_of_fold(lambda fold: length_fit(reward.without(HELD_OUT, fold), reward.of(fold)))
        else:
            lengths = self._tested(length_logits(reward.examples))
        return {MODEL: self._out_of_fold(self._fold), FROZEN: self._frozen_head(), LENGTH: lengths}

    def _out_of_fold(self, logits_of: Callable[[int], list[list[float]]]) -> list[list[float] | None]:
        """Per example its logits, by what gives those of a fold's examples; None for what is not tested."""
        logits: list[list[float] | None] = [None] * len(self.reward.examples)
        for fold in self.tested:
            predicted = iter(logits_of(fold))
            for i, part in enumerate(self.reward.parts):
                if part == fold:
                    logits[i] = next(predicted)
        return logits

    def final(self) -> Path:
        """Trains on everything and writes the checkpoint that is served; returns its directory."""
        directory = self.reward.run.path / "checkpoint"
        if (directory / "assay.json").is_file():
            return directory
        return self.reward.save(self.reward.fit("final", self.reward.without()))

    def frozen_features(self) -> list[torch.Tensor]:
        """Per example what a head reads off the frozen base: fp32 `[K, H]`."""
        model = RewardModel.load(self.reward.base, torch.float32, self.reward.device)
        model.add_signal("frozen", Head(torch.ones(1, model.hidden_size), None))
        return frozen_features(model, "frozen", self.reward.examples, self.reward.config.optimizer)

    def _fold(self, fold: int) -> list[list[float]]:
        """The logits of a fold's examples by a model trained without it, or what an interrupted run computed."""
        stored: list[list[float]] | None = self.reward.run.read_json(f"fold{fold}.json")
        if stored is None:
            model = self.reward.fit(f"fold{fold}", self.reward.without(HELD_OUT, fold))
            stored = self.reward.predict(model, self.reward.of(fold))
            self.reward.run.write_json(f"fold{fold}.json", stored)
        return stored

    def _frozen_head(self) -> list[list[float] | None]:
        stored: list[list[float] | None] | None = self.reward.run.read_json("frozen_head.json")
        if stored is None:  # of every fold: `test_folds` may change between calls
            stored = out_of_fold(self.frozen_features(), self.reward.examples, self.reward.parts, self.folds)
            self.reward.run.write_json("frozen_head.json", stored)
        return self._tested(stored)

    def _tested(self, logits: Sequence[list[float] | None]) -> list[list[float] | None]:
        """`logits` of the examples that are tested, None for the others."""
        return [row if part in self.tested else None for row, part in zip(logits, self.reward.parts, strict=True)]


def cross_validate(reward: RewardRun, config_path: Path) -> None:
    """The checkpoint, the results of the tested folds, and the model card."""
    cross_validation = CrossValidation(reward)
    checkpoint = cross_validation.final()
    contenders = cross_validation.contenders()
    tested = [i for i, part in enumerate(reward.parts) if part in cross_validation.tested]
    rows = Rows.of(
        [reward.examples[i].record for i in tested],
        {name: [row for row in logits if row is not None] for name, logits in contenders.items()},
    )
    numbers = results(rows, reward.config.objective, reward.config.seed)
    reward.run.write_json("results.json", numbers)
    facts = CardFacts(
        config=reward.config,
        command=f"assay train reward --config {config_path} --data DIR",
        data_sha256=reward.run.read_json("run.json")["data_sha256"],
        rendering=reward.run.read_json("render.json"),
        examples=len(reward.examples),
        versions={name: version(name) for name in ("torch", "transformers", "peft")},
    )
    if reward.run.writes:
        (checkpoint / "MODEL_CARD.md").write_text(card(facts, numbers))
        if rows.labels is None:
            plots.margins(rows, MODEL).savefig(reward.run.path / "margins.png", dpi=120)
    reward.run.forget()
