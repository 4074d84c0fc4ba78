"""A reward-model run: data to parts, a part to a trained model, a model to a checkpoint that is served unchanged."""

import math
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from assay_service.errors import ContentError
from assay_service.scoring import manifest as manifests
from assay_service.scoring import tokenizer
from assay_service.scoring.checkpoint import read_adapter, read_head
from assay_service.scoring.files import sha256_of, weight_files
from assay_service.scoring.head import Head
from assay_service.scoring.item import Item
from assay_service.scoring.layout import TokenSequence
from assay_service.scoring.model import RewardModel
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from assay_training.algorithms.folds import HELD_OUT
from assay_training.config.base import ConfigError
from assay_training.config.mixture import Augment
from assay_training.config.model import OptimizerConfig
from assay_training.config.objective import AbsoluteObjective
from assay_training.config.reward import RewardConfig
from assay_training.data.chat_template import template_of
from assay_training.data.checks import base_of, check_length, check_refused
from assay_training.data.examples import Example, render_records
from assay_training.data.mixture import Paraphrases, mix
from assay_training.distributed.processes import accelerator, tell
from assay_training.distributed.sharding import copy_whole, shard, sharding_requested
from assay_training.loop.supervised import Schedule, train
from assay_training.models.batches import autocast, token_batches
from assay_training.models.lora import lora_config
from assay_training.records.paraphrases import read_paraphrases
from assay_training.records.rows import rows_of_file
from assay_training.records.sources import data_hashes, read_labelled, read_rankings
from assay_training.reward_model.checkpoint import write_adapter, write_whole
from assay_training.reward_model.checks import check, check_equal_ids, fold_of_record, paraphrased, teaches, untaught
from assay_training.reward_model.objectives import Pairwise, Pointwise
from assay_training.runs.directory import RunDirectory, base_identity

STATISTICS_SAMPLE = 500
GOLDEN_ROWS = 3
RELOADED_SAMPLE = 16
RELOADED_TOLERANCE = 1e-5


Golden = tuple[Item, TokenSequence]


class RewardRun:
    """One configuration with its data.

    Args:
        config: the run's.
        data: the folder that holds the sources' folders.
        out: the run directory.

    Attributes:
        examples: all of it as ids, in order; what the renderer refused is missing.
        parts: the fold of each example, or `HELD_OUT`.
    """

    def __init__(self, config: RewardConfig, data: Path, out: Path) -> None:
        self.config = config
        self.base = base_of(config)
        self.template = template_of(config, self.base)
        read = read_rankings if config.objective.kind == "preference" else read_labelled
        found = read(data, config.sources)
        for line in found.report_lines():
            tell(line)
        self._paraphrases = _paraphrases(config, data)
        check_length("max_length", config.max_length, self.base)
        self.device = accelerator().device
        model = self.fresh_model()
        self.renderer = self._renderer(model)
        declared = [self._golden(*texts) for texts in config.golden or ()]
        self.examples, report = render_records(found.records, self.renderer)
        told = check_refused(report.refused, len(found.records))
        self.golden = declared or self._first_rows()
        records = [example.record for example in self.examples]
        for line in (*told, *check_equal_ids(report.equal_ids, records, config.max_length)):
            tell(line)
        check(config, records, self._paraphrases)
        self.run = RunDirectory(
            out,
            {
                "config": config.model_dump(
                    mode="json", exclude={"template": True, "base": True, "split": {"test_folds"}}
                ),
                "template": self.template,
                **base_identity(self.base),
                "data_sha256": data_hashes(data, config.sources, config.mixture),
            },
            writes=accelerator().is_main_process,
        )
        self.parts = [fold_of_record(config, record) for record in records]
        learned = [example.record for example in self.without(HELD_OUT)]
        self.run.write_json(
            "render.json",
            {
                "understood": found.understood,
                "left_out": found.left_out + untaught(records),
                **asdict(report),
                **paraphrased(config, learned, self._paraphrases),
            },
        )

    def without(self, *parts: int) -> list[Example]:
        """What a model is trained on that must not see `parts`."""
        return [e for e, part in zip(self.examples, self.parts, strict=True) if part not in parts]

    def of(self, part: int) -> list[Example]:
        """The examples of one part."""
        return [e for e, other in zip(self.examples, self.parts, strict=True) if other == part]

    def fit(self, name: str, training: Sequence[Example]) -> RewardModel:
        """Mixes a training part and trains on it, from where an interrupted run left off."""
        model = self.fresh_model()
        shard(model.base)
        config, settings = self.config, self.config.optimizer
        examples = [example for example in self._mixed(name, training) if teaches(example.record)]
        if isinstance(config.objective, AbsoluteObjective):
            objective: Pairwise | Pointwise = Pointwise(model, config.name, config.objective, settings)
        else:
            objective = Pairwise(model, config.name, config.objective, settings)
        train(
            objective,
            model.parameters_of(config.name),
            Schedule(examples, settings, config.seed),
            name=f"{config.name} {name}",
            metrics=self.run.metrics(name),
            resume=self.run.resume_point(name),
        )
        if not sharding_requested():
            return model
        whole = self.fresh_model()
        copy_whole(model.parameters_of(config.name), whole.parameters_of(config.name))
        return whole

    def predict(self, model: RewardModel, examples: Sequence[Example]) -> list[list[float]]:
        """The logit of every completion of every example, in order."""
        return predict(model, self.config.name, examples, self.config.optimizer)

    def save(self, model: RewardModel) -> Path:
        """Writes the checkpoint that is served, on the main process; returns its directory.

        What was written is read back and must give the same logits before the manifest makes a checkpoint of it.
        """
        directory = self.run.path / "checkpoint"
        if not self.run.writes:
            return directory
        sample = self.examples[:: max(1, len(self.examples) // STATISTICS_SAMPLE)]
        logits = [logit for row in self.predict(model, sample) for logit in row]
        if self.config.lora is None:
            write_whole(directory, model.whole_tensors(self.config.name), self.template, self.base)
            base, adapters, head = directory, [], read_head(weight_files(directory))
        else:
            tensors, head_name = model.adapter_tensors(self.config.name), model.architecture.head
            write_adapter(directory, tensors, self.config, head_name, self.template)
            adapter, head = read_adapter(directory)
            base, adapters = self.base, [adapter]
        assert head is not None
        reloaded = RewardModel.load(base, torch.float32, self.device)
        reloaded.add_signal(self.config.name, Head(head.weight, head.bias), *adapters)
        self._compare(model, reloaded, sample[:RELOADED_SAMPLE])
        base_sha256 = sha256_of(weight_files(base))
        statistics_ = (statistics.fmean(logits), statistics.stdev(logits))
        manifests.write(self._manifest(model, base_sha256, *statistics_), directory)
        return directory

    def fresh_model(self) -> RewardModel:
        """The base with a fresh signal."""
        torch.manual_seed(self.config.seed)
        model = RewardModel.load(self.base, torch.float32, self.device)
        generator = torch.Generator().manual_seed(self.config.seed)
        head = Head.fresh(model.hidden_size, generator, bias=model.architecture.head_bias)
        lora = self.config.lora
        model.add_fresh_signal(self.config.name, head, None if lora is None else lora_config(lora, model.base))
        return model

    def _mixed(self, name: str, training: Sequence[Example]) -> list[Example]:
        """The examples of the mixed records; what a step made is rendered, the rest is there already."""
        rendered = {example.record: example for example in training}
        records = mix(
            [example.record for example in training], self.config.mixture, self._paraphrases, self.config.seed
        )
        made = list(dict.fromkeys(record for record in records if record not in rendered))
        if made:
            examples, report = render_records(made, self.renderer)
            self.run.write_json(f"render_{name}.json", asdict(report))
            rendered |= {example.record: example for example in examples}
        return [rendered[record] for record in records if record in rendered]

    def _compare(self, model: RewardModel, reloaded: RewardModel, sample: Sequence[Example]) -> None:
        exact = self.config.optimizer.model_copy(update={"compute_dtype": "float32"})
        pairs = [predict(m, self.config.name, sample, exact) for m in (model, reloaded)]
        apart = max(abs(a - b) for x, y in zip(*pairs, strict=True) for a, b in zip(x, y, strict=True))
        if not math.isfinite(apart):
            raise FloatingPointError(f"{self.run.path}: the trained model's logits are not finite")
        if apart > RELOADED_TOLERANCE:
            raise RuntimeError(f"{self.run.path}: read back, a logit differs by {apart}; it is not what was trained")

    def _renderer(self, model: RewardModel) -> Renderer:
        """The renderer that serving will use."""
        config = self.config
        rules = RenderRules(
            self.template,
            config.max_length,
            config.score_position,
            config.eos,
            config.unfinished,
            model.base.config.pad_token_id,
        )
        return Renderer(tokenizer.load(self.base), rules, model.vocabulary_size)

    def _manifest(self, model: RewardModel, base_sha256: str, mean: float, std: float) -> manifests.Manifest:
        config = self.config
        golden = []
        for item, sequence in self.golden:
            with torch.inference_mode():
                logit = model.logits([sequence], config.name).item()
            messages = tuple((message.role, message.content) for message in item.messages)
            golden.append(manifests.GoldenRow(messages=messages, logit=logit))
        return manifests.Manifest(
            kind=config.objective.kind,
            base_sha256=base_sha256,
            template_sha256=self.renderer.template.sha256,
            score_position=config.score_position,
            eos=config.eos,
            max_length=config.max_length,
            unfinished=config.unfinished,
            mean=mean,
            std=std,
            golden=tuple(golden),
            token_types="zero" if model.token_types > 1 else None,
            pad_token_id=self.renderer.rules.pad_token_id if config.score_position == "last_non_pad_id" else None,
        )

    def _golden(self, prompt: str, completion: str) -> Golden:
        item = Item.of(prompt, completion)
        try:
            return item, self.renderer.render(item).sequence
        except ContentError as error:
            raise ConfigError(f"golden: {prompt[:40]!r}: {error.message}") from error

    def _first_rows(self) -> list[Golden]:
        """The first items of the data that fit whole, one of a record, in the place of golden rows of the run's own.

        Raises:
            ConfigError: there are none.
        """
        found: list[Golden] = []
        for example in self.examples:
            with suppress(ContentError):
                found.append((example.record.items[0], self.renderer.render(example.record.items[0]).sequence))
            if len(found) == GOLDEN_ROWS:
                break
        if self.examples and not found:
            raise ConfigError("golden: is missing, and no row of the data fits max_length whole; name a short text")
        tell(f"golden: the first {len(found)} rows of the data are stored in the checkpoint, to be checked at its load")
        return found


def predict(
    model: RewardModel, signal: str, examples: Sequence[Example], settings: OptimizerConfig
) -> list[list[float]]:
    """The logit of every completion of every example, in order, computed in `settings.compute_dtype`."""
    logits: dict[int, list[float]] = {}
    by_length = sorted(range(len(examples)), key=lambda i: examples[i].tokens)
    for part in tqdm(
        list(token_batches(by_length, examples, settings.micro_batch_tokens)),
        desc=f"score {signal}",
        mininterval=10,
    ):
        with torch.inference_mode(), autocast(model.device, settings):
            rows = model.logits([s for i in part for s in examples[i].sequences], signal).tolist()
        for i in part:
            count = len(examples[i].sequences)
            logits[i], rows = rows[:count], rows[count:]
    return [logits[i] for i in range(len(examples))]


def _paraphrases(config: RewardConfig, data: Path) -> Paraphrases:
    files = [step.file for step in config.mixture if isinstance(step, Augment)]
    return {file: read_paraphrases(rows_of_file(data / file)) for file in files}
