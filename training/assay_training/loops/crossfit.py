"""One run of `assay train reward`: out-of-fold logits, then the model that is served, each step resumable."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoTokenizer

from assay_service.errors import ContentError
from assay_service.scoring.checkpoint import resolve, sha256_of, weight_files
from assay_service.scoring.head import Head
from assay_service.scoring.item import Item
from assay_service.scoring.layout import Sequence as Ids
from assay_service.scoring.manifest import Manifest
from assay_service.scoring.model import RewardModel
from assay_service.scoring.render import Renderer, RenderRules
from assay_training.algorithms.folds import DEV, fold_of
from assay_training.config import ConfigError, RewardConfig
from assay_training.config import read as read_config
from assay_training.evaluation.baselines import frozen_features, length_features, length_logits, out_of_fold
from assay_training.evaluation.card import CardFacts, card
from assay_training.evaluation.results import FROZEN, LENGTH, MODEL, Rows, results
from assay_training.examples import Example, render_records
from assay_training.loops.reward import predict, train
from assay_training.mixture import check_names, mismatched, times_in_epoch
from assay_training.records import Record, data_hashes, read_labelled, read_rankings
from assay_training.rundir import RunDirectory, write_checkpoint

STATISTICS_SAMPLE = 2000


class Crossfit:
    """A run: the data as examples, and what each part of it is for.

    Args:
        config: the run's.
        data: the folder that holds the sources' folders.
        out: the run directory.
    """

    def __init__(self, config: RewardConfig, data: Path, out: Path) -> None:
        self.config = config
        self.base = resolve(config.base, None, Path.cwd())
        self.base_sha256 = sha256_of(weight_files(self.base))
        read = read_rankings if config.kind == "preference" else read_labelled
        records = read(data, list(config.sources))
        check_names(config.repeat, records)
        self.run = RunDirectory(out, config, self.base_sha256, data_hashes(data, list(config.sources)))
        model = self._fresh_model(seed=config.seed)[0]
        renderer = self.renderer(model)
        self.golden = [self._golden(renderer, *texts) for texts in config.golden]
        self.examples, report = render_records(records, renderer)
        self.run.write_json("render.json", asdict(report))
        self.folds = [self._fold(example.record) for example in self.examples]
        # Trained on and never tested on, and no baseline sees them: they are not what humans judged.
        made = mismatched(records, config.mismatched, self._fold, config.seed)
        self.made = render_records(made, renderer)[0]

    def renderer(self, model: RewardModel) -> Renderer:
        """The renderer that serving will use."""
        config = self.config
        rules = RenderRules(
            config.template.read_text(),
            config.max_length,
            config.score_position,
            config.eos,
            config.unfinished,
            model.base.config.pad_token_id,
        )
        return Renderer(AutoTokenizer.from_pretrained(self.base), rules, model.vocabulary_size)

    def dev(self) -> list[list[float]]:
        """Logits of the development part from a model that has seen neither it nor the test part of fold 0."""
        return self._fit_and_predict("dev", self._without(DEV, 0), self.part(DEV))

    def out_of_fold(self) -> list[list[float] | None]:
        """Per example the logits of a model that has not seen its group; None for the development part."""
        logits: list[list[float] | None] = [None] * len(self.examples)
        for fold in self.tested_folds:
            predicted = self._fit_and_predict(f"fold{fold}", self._without(fold), self.part(fold))
            for i, row in zip(self._indices(fold), predicted, strict=True):
                logits[i] = row
        return logits

    def contenders(self) -> dict[str, list[list[float] | None]]:
        """Out-of-fold logits of the model and of its baselines."""
        if self.config.kind == "absolute":  # labels have a scale, which the length must first be fitted to
            lengths = out_of_fold(length_features(self.examples), self.examples, self.folds, self.tested_folds)
        else:
            lengths = self._tested(length_logits(self.examples))
        return {MODEL: self.out_of_fold(), FROZEN: self._frozen_head(), LENGTH: lengths}

    @property
    def tested_folds(self) -> range:
        """The folds that are tested."""
        return range(self.config.split.test_folds)

    def part(self, fold: int) -> list[Example]:
        """The examples of one part."""
        return [self.examples[i] for i in self._indices(fold)]

    def final(self) -> Path:
        """Trains on everything and writes the checkpoint that is served; returns its directory."""
        directory = self.run.path / "checkpoint"
        if (directory / "assay.json").is_file():
            return directory
        model, parameters = self._fresh_model(seed=self.config.seed)
        self._train("final", model, parameters, self._without())
        sample = self.examples[:: max(1, len(self.examples) // STATISTICS_SAMPLE)]
        logits = [logit for row in predict(model, self.config.name, sample, self.config.optimiser) for logit in row]
        tensors = model.adapter_tensors(self.config.name)
        manifest = self._manifest(model, statistics.fmean(logits), statistics.stdev(logits))
        write_checkpoint(directory, tensors, self.config, model.architecture.head, manifest)
        return directory

    def frozen_features(self) -> list[torch.Tensor]:
        """Per example what a head reads off the frozen base: fp32 `[K, H]`."""
        model = RewardModel.load(self.base, torch.float32, torch.device("cpu"))
        model.add_signal("frozen", Head(torch.ones(1, model.hidden_size), None))
        return frozen_features(model, "frozen", self.examples, self.config.optimiser)

    def _frozen_head(self) -> list[list[float] | None]:
        stored: list[list[float] | None] | None = self.run.read_json("frozen_head.json")
        if stored is None:
            every = range(self.config.split.folds)  # `test_folds` may change between calls
            stored = out_of_fold(self.frozen_features(), self.examples, self.folds, every)
            self.run.write_json("frozen_head.json", stored)
        return self._tested(stored)

    def _tested(self, logits: Sequence[list[float] | None]) -> list[list[float] | None]:
        """`logits` of the examples that are tested, None for the others."""
        return [row if fold in self.tested_folds else None for row, fold in zip(logits, self.folds, strict=True)]

    def _fit_and_predict(self, name: str, training: list[Example], test: list[Example]) -> list[list[float]]:
        """Trains on one part and scores another, or reads what an interrupted run already computed."""
        stored = self.run.read_json(f"{name}.json")
        if stored is None:
            model, parameters = self._fresh_model(seed=self.config.seed)
            self._train(name, model, parameters, training)
            stored = predict(model, self.config.name, test, self.config.optimiser)
            self.run.write_json(f"{name}.json", stored)
        return [[float(logit) for logit in row] for row in stored]

    def _train(self, name: str, model: RewardModel, parameters: list[torch.nn.Parameter], part: list[Example]) -> None:
        def log(row: dict[str, Any]) -> None:
            self.run.log({"part": name, **row})

        repeated = [example for example in part for _ in range(times_in_epoch(example.record, self.config.repeat))]
        train(model, self.config.name, parameters, repeated, self.config.optimiser, seed=self.config.seed, log=log)

    def _fresh_model(self, *, seed: int) -> tuple[RewardModel, list[torch.nn.Parameter]]:
        torch.manual_seed(seed)
        model = RewardModel.load(self.base, torch.float32, torch.device("cpu"))
        head = Head.fresh(model.hidden_size, torch.Generator().manual_seed(seed))
        lora = self.config.lora
        settings = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            target_modules=lora.target_modules,
            layers_to_transform=lora.layers,
        )
        return model, model.add_fresh_signal(self.config.name, head, settings)

    def _manifest(self, model: RewardModel, mean: float, std: float) -> Manifest:
        renderer = self.renderer(model)
        golden = []
        for (prompt, completion), sequence in zip(self.config.golden, self.golden, strict=True):
            with torch.inference_mode():
                logit = model.logits([sequence], self.config.name).item()
            golden.append(self.config.golden_row(prompt, completion, logit))
        return Manifest(
            kind=self.config.kind,
            base_sha256=self.base_sha256,
            template_sha256=renderer.template.sha256,
            score_position=self.config.score_position,
            eos=self.config.eos,
            max_length=self.config.max_length,
            unfinished=self.config.unfinished,
            mean=mean,
            std=std,
            golden=tuple(golden),
        )

    def _golden(self, renderer: Renderer, prompt: str, completion: str) -> Ids:
        try:
            return renderer.render(Item.of(prompt, completion)).sequence
        except ContentError as error:
            raise ConfigError(f"golden: {prompt[:40]!r}: {error.message}") from error

    def _without(self, *folds: int) -> list[Example]:
        """What a model is trained on that must not see `folds`."""
        return [example for example in (*self.examples, *self.made) if self._fold(example.record) not in folds]

    def _fold(self, record: Record) -> int:
        split = self.config.split
        return fold_of(record.group, folds=split.folds, dev_share=split.dev_share, seed=self.config.seed)

    def _indices(self, fold: int) -> list[int]:
        return [i for i, f in enumerate(self.folds) if f == fold]


def run(config_path: Path, data: Path, out: Path | None, *, dev_only: bool) -> None:
    """The whole of `assay train reward`.

    Raises:
        ValueError: the configuration, the data or the run directory is wrong.
    """
    config = read_config(config_path)
    crossfit = Crossfit(config, data, out or Path("runs") / config.name)
    if dev_only:
        rows = Rows.of(crossfit.part(DEV), {MODEL: crossfit.dev(), LENGTH: length_logits(crossfit.part(DEV))})
        crossfit.run.write_json("dev_results.json", results(rows, config.seed))
        return
    checkpoint = crossfit.final()
    contenders = crossfit.contenders()
    tested = [i for i, fold in enumerate(crossfit.folds) if fold in crossfit.tested_folds]
    rows = Rows.of(
        [crossfit.examples[i] for i in tested],
        {name: [row for row in logits if row is not None] for name, logits in contenders.items()},
    )
    numbers = results(rows, config.seed)
    crossfit.run.write_json("results.json", numbers)
    facts = CardFacts(
        config=config,
        command=f"assay train reward --config training/configs/{config_path.name} --data DIR",
        data_sha256=crossfit.run.read_json("run.json")["data_sha256"],
        rendering=crossfit.run.read_json("render.json"),
        examples=len(crossfit.examples),
        versions={name: version(name) for name in ("torch", "transformers", "peft")},
    )
    (checkpoint / "MODEL_CARD.md").write_text(card(facts, numbers))
