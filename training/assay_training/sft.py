"""Supervised training of a policy: pretraining on texts, SFT on what the assistant says, in stages."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from assay_service.scoring import tokenizer
from assay_training.algorithms.folds import HELD_OUT, fold_of
from assay_training.config.base import ConfigError, read
from assay_training.config.sft import SftConfig, Stage
from assay_training.data.chat_template import template_of
from assay_training.data.checks import base_of, check_length, check_refused
from assay_training.data.sft_examples import SftExample, SftRenderer
from assay_training.distributed.processes import accelerator, tell
from assay_training.distributed.sharding import copy_whole, sharding_requested
from assay_training.loop.next_token import NextToken
from assay_training.loop.supervised import Schedule, train
from assay_training.models.batches import autocast, token_batches
from assay_training.models.checkpoint import policy_lines, policy_renderer, save_policy
from assay_training.models.policy import Policy
from assay_training.records.sources import data_hashes, read_spoken
from assay_training.runs.directory import RunDirectory, base_identity

LARGEST_LOSS = 700.0  # nats per token; the exponential of more is no float64


class SftRun:
    """One configuration with its data.

    Args:
        config: the run's.
        data: the folder that holds the sources' folders.
        out: the run directory.
    """

    def __init__(self, config: SftConfig, data: Path, out: Path) -> None:
        self.config = config
        self.base = base_of(config)
        self.template = template_of(config, self.base)
        check_length("max_length", config.max_length, self.base)
        spoken = [read_spoken(data, stage.sources) for stage in config.stages]
        for line in (line for found in spoken for line in found.report_lines()):
            tell(line)
        hashes: dict[str, str] = {}
        for stage in config.stages:
            hashes |= data_hashes(data, stage.sources, [])
        torch.manual_seed(config.seed)
        self.policy = Policy(self.base, config.lora, accelerator().device)
        self.policy.shard()
        self.parts: list[tuple[list[SftExample], list[SftExample]]] = []
        loaded = tokenizer.load(self.base)
        rendered = policy_renderer(loaded, self.template, self.policy.vocabulary_size)
        renderer, reports = SftRenderer(rendered, loaded, config.max_length), {}
        for stage, found in zip(config.stages, spoken, strict=True):
            training, report = renderer.examples([r for r in found.records if not self._held_out(r.group)])
            tested, tested_report = renderer.examples([r for r in found.records if self._held_out(r.group)])
            self.parts.append((training, tested))
            lost = Counter(report.lost) + Counter(tested_report.lost)
            for line in check_refused(lost, len(found.records), f"stages: {stage.name}"):
                tell(line)
            reports[stage.name] = {
                "understood": found.understood,
                "left_out": found.left_out,
                "training": asdict(report),
                "held_out": asdict(tested_report),
            }
        for stage, (training, tested) in zip(config.stages, self.parts, strict=True):
            if not (training and tested):
                raise ConfigError(f"stages: {stage.name}: {len(training)} examples to learn, {len(tested)} held out")
        self.run = RunDirectory(
            out,
            {
                "config": config.model_dump(mode="json", exclude={"template", "base"}),
                "template": self.template,
                **base_identity(self.base),
                "data_sha256": hashes,
            },
            writes=accelerator().is_main_process,
        )
        self.run.write_json("render.json", reports)

    def go(self) -> Path:
        """All stages, then the whole model in transformers' format; returns its directory."""
        directory = self.run.path / "checkpoint"
        if self.run.read_json("results.json") is not None:
            return directory
        losses: dict[str, Any] = self.run.read_json("losses.json") or {}
        for stage, (training, held_out) in zip(self.config.stages, self.parts, strict=True):
            before = losses.get(stage.name, {}).get("before") or self._loss(held_out, stage)
            self._train(stage, training)
            losses[stage.name] = {"before": before, "after": self._loss(held_out, stage)}
            self.run.write_json("losses.json", losses)
        whole = self.policy
        if sharding_requested():
            whole = Policy(self.base, self.config.lora, self.policy.device)
            copy_whole(self.policy.parameters(), whole.parameters())
        if self.run.writes:
            save_policy(whole, directory, self.base, self.template, self.parts[-1][0])
        self.run.write_json("results.json", losses)
        self.run.forget()
        return directory

    def _train(self, stage: Stage, training: Sequence[SftExample]) -> None:
        train(
            NextToken(self.policy, stage.optimizer),
            self.policy.parameters(),
            Schedule(training, stage.optimizer, self.config.seed),
            name=f"{self.config.name} {stage.name}",
            metrics=self.run.metrics(stage.name),
            resume=self.run.resume_point(stage.name),
        )

    def _loss(self, examples: Sequence[SftExample], stage: Stage) -> dict[str, float]:
        """Mean negative log-likelihood per target token of what no stage sees, and its exponential."""
        targets, total = sum(example.targets for example in examples), 0.0
        batches = list(token_batches(range(len(examples)), examples, stage.optimizer.micro_batch_tokens))
        for part in tqdm(batches, desc=f"held out, {stage.name}", mininterval=10):
            # Not in inference mode, whose tensors could not be trained on where layers are shared.
            with torch.no_grad(), autocast(self.policy.device, stage.optimizer):
                total -= float(self.policy.logprobs([examples[i] for i in part]).double().sum())
        loss = total / targets
        if not loss < LARGEST_LOSS:
            raise FloatingPointError(
                f"{stage.name}: the loss on what is held out is {loss} per token: the training diverges; lower "
                f"optimizer.learning_rate (it is {stage.optimizer.learning_rate:g})"
            )
        return {"targets": targets, "loss": loss, "perplexity": math.exp(loss)}

    def _held_out(self, group: str) -> bool:
        return fold_of(group, folds=1, held_out=self.config.held_out, seed=self.config.seed) == HELD_OUT


def run(config_path: Path, data: Path, out: Path | None) -> Path:
    """The whole of `assay train sft`; returns the checkpoint's directory.

    Raises:
        ValueError: the configuration, the data or the run directory is wrong.
    """
    config = read(config_path, SftConfig)
    sft = SftRun(config, data, out or Path("runs") / config.name)
    checkpoint = sft.go()
    for line in summary_lines(sft.run.read_json("results.json") or {}, checkpoint):
        tell(line)
    return checkpoint


def summary_lines(losses: Mapping[str, Any], checkpoint: Path) -> list[str]:
    """Return what the stages of a policy came to on what no stage has seen, and where the policy is."""
    lines = [
        f"{stage}: perplexity on {loss['after']['targets']:,} held-out tokens "
        f"{loss['before']['perplexity']:.4g} before, {loss['after']['perplexity']:.4g} after"
        for stage, loss in losses.items()
    ]
    return [*lines, *policy_lines(checkpoint)]
