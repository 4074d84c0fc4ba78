"""Run a reward-model configuration: split its data, train on a part, and save a checkpoint that is served unchanged."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from assay_service.scoring import manifest as manifests
from assay_service.scoring import tokenizer
from assay_service.scoring.head import Head
from assay_service.scoring.model import RewardModel
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from assay_training.algorithms.folds import HELD_OUT
from assay_training.config.mixture import Augment
from assay_training.config.objective import AbsoluteObjective
from assay_training.config.reward import RewardConfig, describe_training
from assay_training.data.chat_template import find_template
from assay_training.data.checks import check_length, check_refused, find_base
from assay_training.data.examples import Example, RenderReport, render_records
from assay_training.data.mixture import Paraphrases, mix
from assay_training.distributed.processes import get_accelerator, print_once
from assay_training.distributed.sharding import copy_whole, shard, sharding_requested
from assay_training.loop.supervised import Schedule, train
from assay_training.models.lora import build_lora_config
from assay_training.records.paraphrases import read_paraphrases
from assay_training.records.rows import read_json_lines
from assay_training.records.sources import hash_data, read_labelled, read_rankings
from assay_training.reward_model.checks import (
    check_equal_ids,
    check_records,
    count_paraphrases,
    count_ties_only,
    find_fold,
    is_trainable,
)
from assay_training.reward_model.golden import render_golden, take_first_rows
from assay_training.reward_model.objectives import Pairwise, Pointwise
from assay_training.reward_model.prediction import predict
from assay_training.reward_model.stored_states import check_lower_layers, reuse_lower_layers
from assay_training.runs.directory import RunDirectory, hash_base

STATISTICS_SAMPLE = 500  # examples for the mean and standard deviation of the manifest
RELOADED_SAMPLE = 16  # examples; a wrong tensor changes the logits of all of them
# In logits: fp32 rounding stays below it, and a wrong weight changes logits by far more.
RELOADED_TOLERANCE = 1e-5


class RewardRun:
    """One reward-model run: a configuration with its data, rendered and divided into parts.

    Args:
        config: configuration of the run.
        data: folder that holds the folders of the sources.
        out: run directory.

    Attributes:
        examples: all records as token ids, in order, without those that the renderer refused.
        parts: fold of each example, or `HELD_OUT`.

    Raises:
        ConfigError: the configuration does not fit the base or the data.
        RecordError: a data file is missing or malformed.
    """

    def __init__(self, config: RewardConfig, data: Path, out: Path) -> None:
        self.config = config
        self.base = find_base(config)
        self.template = find_template(config, self.base)
        read = read_rankings if config.objective.kind == "preference" else read_labelled
        found = read(data, config.sources)
        for line in found.report_lines():
            print_once(line)
        # Read now: a missing file must not end the run after the training.
        self._paraphrases = _read_paraphrases(config, data)
        check_length("max_length", config.max_length, self.base)
        self.device = get_accelerator().device
        # Without weights: a base or an adapter that does not fit fails now, and the weights are read after the data.
        bare = self.build_model(torch.device("meta"))
        check_lower_layers(config, bare)
        self.renderer = self._build_renderer(bare)
        # Before the data, which take long to render: a golden row that does not fit fails at once.
        declared = [render_golden(self.renderer, *texts) for texts in config.golden or ()]
        self.examples, report = render_records(found.records, self.renderer)
        records = [example.record for example in self.examples]
        self._check_rendered(report, len(found.records))
        self.golden = declared or take_first_rows(self.renderer, self.examples)
        self.run = RunDirectory(out, self._identify(data), writes=get_accelerator().is_main_process)
        self.parts = [find_fold(config, record) for record in records]
        # Paraphrases are used in training only, so only these records count.
        learned = [example.record for example in self.exclude_parts(HELD_OUT)]
        self.run.write_json(
            "render.json",
            {
                "understood": found.understood,
                "dropped": found.dropped + count_ties_only(records),
                **asdict(report),
                **count_paraphrases(config, learned, self._paraphrases),
            },
        )

    def _check_rendered(self, report: RenderReport, count: int) -> None:
        """Check the rendered records, and print what they lost.

        Args:
            report: report on the rendering.
            count: number of records before it.

        Raises:
            ConfigError: most records were refused, or those that are left do not fit the configuration.
        """
        records = [example.record for example in self.examples]
        refused = check_refused(report.refused, count)
        for line in (*refused, *check_equal_ids(report.equal_ids, records, self.config.max_length)):
            print_once(line)
        check_records(self.config, records, self._paraphrases)

    def _identify(self, data: Path) -> dict[str, Any]:
        """Return everything that decides the result, without the keys that only add tests to the same run."""
        return {
            "config": describe_training(self.config),
            "template": self.template,
            **hash_base(self.base),
            "data_sha256": hash_data(data, self.config.sources, self.config.mixture),
        }

    def exclude_parts(self, *parts: int) -> list[Example]:
        """Return the examples outside `parts`, for a model that must not be trained on these."""
        return [e for e, part in zip(self.examples, self.parts, strict=True) if part not in parts]

    def select_part(self, part: int) -> list[Example]:
        """Return the examples of one part."""
        return [e for e, other in zip(self.examples, self.parts, strict=True) if other == part]

    def fit(self, name: str, training: Sequence[Example]) -> RewardModel:
        """Mix a training part and train a new model on it, from the last saved state of an interrupted run.

        Args:
            name: name of the training in metrics and saved states.
            training: examples of the training part.
        """
        model = self.build_model()
        # The base only; heads are small, and every process has them whole.
        shard(model.base)
        config = self.config
        examples = self.mix(name, training)
        with reuse_lower_layers(model, config, self.base, self.run, examples):
            train(
                self.build_objective(model),
                model.get_parameters(config.name),
                Schedule(examples, config.optimizer, config.seed),
                name=f"{config.name} {name}",
                metrics=self.run.metrics(name),
                resume=self.run.resume_point(name),
            )
        if not sharding_requested():
            return model
        # Sharded weights are spread over processes, but one process predicts and saves: it needs them whole.
        whole = self.build_model()
        copy_whole(model.get_parameters(config.name), whole.get_parameters(config.name))
        return whole

    def build_objective(self, model: RewardModel) -> Pairwise | Pointwise:
        """Return the loss of this run's signal in `model`."""
        config, settings = self.config, self.config.optimizer
        if isinstance(config.objective, AbsoluteObjective):
            return Pointwise(model, config.name, config.objective, settings)
        return Pairwise(model, config.name, config.objective, settings)

    def predict(self, model: RewardModel, examples: Sequence[Example]) -> list[list[float]]:
        """Return the logits of each example's completions, in order."""
        return predict(model, self.config.name, examples, self.config.optimizer)

    def build_model(self, device: torch.device | None = None) -> RewardModel:
        """Load the base and add a new signal, with the same initial weights for the same seed; on `meta` with none."""
        torch.manual_seed(self.config.seed)
        model = RewardModel.load(self.base, torch.float32, device or self.device)
        # Of its own, so that the head does not depend on how many numbers the base's loading draws.
        generator = torch.Generator().manual_seed(self.config.seed)
        head = Head.fresh(model.hidden_size, generator, bias=model.architecture.head_bias)
        lora = self.config.lora
        model.add_fresh_signal(self.config.name, head, None if lora is None else build_lora_config(lora, model.base))
        return model

    def mix(self, name: str, training: Sequence[Example]) -> list[Example]:
        """Return the examples of the mixed records to train on; only records that a step created are rendered anew."""
        # Rendering is slow, and mixing mostly repeats what is rendered already.
        rendered = {example.record: example for example in training}
        records = mix(
            [example.record for example in training], self.config.mixture, self._paraphrases, self.config.seed
        )
        # Once each, since `repeat` may hold a record several times.
        made = list(dict.fromkeys(record for record in records if record not in rendered))
        if made:
            examples, report = render_records(made, self.renderer)
            self.run.write_json(f"render_{name}.json", asdict(report))
            rendered |= {example.record: example for example in examples}
        return [rendered[record] for record in records if record in rendered and is_trainable(record)]

    def check_reloaded(self, model: RewardModel, reloaded: RewardModel) -> None:
        """Compare the logits of the trained model with those of the weights that were written and read back.

        Raises:
            FloatingPointError: the logits of the trained model are not finite.
            RuntimeError: a logit differs.
        """
        # A few are enough: one wrong tensor changes the logits of all.
        sample = self._draw_sample()[:RELOADED_SAMPLE]
        # In float32, because the rounding of bfloat16 would hide a small difference of the weights.
        exact = self.config.optimizer.model_copy(update={"compute_dtype": "float32"})
        pairs = [predict(m, self.config.name, sample, exact) for m in (model, reloaded)]
        largest = max(abs(a - b) for x, y in zip(*pairs, strict=True) for a, b in zip(x, y, strict=True))
        if not math.isfinite(largest):
            raise FloatingPointError(f"{self.run.path}: the trained model's logits are not finite")
        if largest > RELOADED_TOLERANCE:
            raise RuntimeError(
                f"{self.run.path}: a logit of the written checkpoint differs by {largest} from the trained model's; "
                "the checkpoint is not served"
            )

    def _build_renderer(self, model: RewardModel) -> Renderer:
        """Build the renderer that the service will use."""
        pad = model.base.config.pad_token_id
        rules = RenderRules(template=self.template, pad_token_id=pad, **self.config.rules)
        return Renderer(tokenizer.load(self.base), rules, model.vocabulary_size)

    def _draw_sample(self) -> Sequence[Example]:
        return self.examples[:: max(1, len(self.examples) // STATISTICS_SAMPLE)]

    def score_golden(self, model: RewardModel) -> tuple[manifests.GoldenRow, ...]:
        """Return the golden rows with their logits by a model in fp32, as a manifest records them."""
        golden = []
        for item, sequence in self.golden:
            with torch.inference_mode():
                logit = model.logits([sequence], self.config.name).item()
            shown = self.renderer.treat_reasoning(item).messages
            messages = tuple((message.role, message.content) for message in shown)
            golden.append(manifests.GoldenRow(messages=messages, logit=logit))
        return tuple(golden)

    def build_output(self, model: RewardModel, golden: tuple[manifests.GoldenRow, ...]) -> manifests.Output:
        """Return what a manifest records of this run's signal: kind, moments and golden rows."""
        config = self.config
        logits = [logit for row in self.predict(model, self._draw_sample()) for logit in row]
        mean, std = statistics.fmean(logits), statistics.stdev(logits)
        return manifests.Output(name=config.name, kind=config.objective.kind, mean=mean, std=std, golden=golden)

    def build_manifest(
        self,
        model: RewardModel,
        base_sha256: str,
        **outputs: Any,  # noqa: ANN401 - of several types
    ) -> manifests.Manifest:
        """Return the manifest of a checkpoint of this run's base and rules.

        Args:
            model: trained model.
            base_sha256: SHA-256 of the base's weights.
            outputs: fields of the manifest about the outputs of the head.
        """
        config = self.config
        return manifests.Manifest(
            base_sha256=base_sha256,
            template_sha256=self.renderer.template.sha256,
            **outputs,
            token_types="zero" if model.token_types > 1 else None,
            pad_token_id=self.renderer.rules.pad_token_id if config.score_position == "last_non_pad_id" else None,
            **config.rules,
        )


def _read_paraphrases(config: RewardConfig, data: Path) -> Paraphrases:
    files = [step.file for step in config.mixture if isinstance(step, Augment)]
    return {file: read_paraphrases(read_json_lines(data / file)) for file in files}
