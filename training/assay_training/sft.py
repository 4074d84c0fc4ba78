"""Train a policy by supervision, in stages: pretraining on texts, then SFT on the messages of the assistant."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from assay_service.scoring import tokenizer
from assay_training.algorithms.folds import HELD_OUT, assign_fold
from assay_training.config.base import ConfigError, read
from assay_training.config.sft import SftConfig, Stage
from assay_training.data.chat_template import find_template
from assay_training.data.checks import check_length, check_refused, find_base
from assay_training.data.sft_examples import SftExample, SftRenderer
from assay_training.distributed.numbers import decide_compute_dtype
from assay_training.distributed.processes import get_accelerator, print_once
from assay_training.distributed.sharding import copy_whole, sharding_requested
from assay_training.loop.next_token import NextToken
from assay_training.loop.supervised import Schedule, train
from assay_training.models.batches import autocast, cut_token_batches
from assay_training.models.checkpoint import build_policy_renderer, describe_policy, save_policy
from assay_training.models.policy import Policy
from assay_training.records.record import Spoken
from assay_training.records.sources import Read, hash_data, read_spoken
from assay_training.runs.directory import RunDirectory, hash_base

LARGEST_LOSS = 700.0  # nats per token; the perplexity of a larger loss overflows float64


class SftRun:
    """A run of supervised training: one configuration with its data and its policy.

    Args:
        config: configuration of the run.
        data: folder with a folder for each source.
        out: run directory.

    Attributes:
        config: configuration of the run.
        base: directory of the base.
        template: Jinja source of the chat template.
        policy: policy that is trained.
        parts: training and held-out examples of each stage.
        run: run directory.

    Raises:
        ValueError: the configuration, the data or the run directory is wrong.
    """

    def __init__(self, config: SftConfig, data: Path, out: Path) -> None:
        self.config = config
        self.base = find_base(config)
        self.template = find_template(config, self.base)
        # Before the data are read, which may take minutes.
        check_length("max_length", config.max_length, self.base)
        spoken = [read_spoken(data, stage.sources) for stage in config.stages]
        for line in (line for read_stage in spoken for line in read_stage.report_lines()):
            print_once(line)
        # A resumed run must have the same data, which are compared by their hashes.
        hashes: dict[str, str] = {}
        for stage in config.stages:
            hashes |= hash_data(data, stage.sources, [])
        torch.manual_seed(config.seed)  # an adapter is initialized at random
        self.policy = Policy(self.base, config.lora, get_accelerator().device)
        # Before any forward pass: parameters are whole until then.
        self.policy.shard()
        loaded = tokenizer.load(self.base)
        rendered = build_policy_renderer(loaded, self.template, self.policy.vocabulary_size)
        renderer, reports = SftRenderer(rendered, loaded, config.max_length), {}
        self.parts: list[tuple[list[SftExample], list[SftExample]]] = []
        for stage, read_stage in zip(config.stages, spoken, strict=True):
            part, reports[stage.name] = self._render_stage(renderer, stage, read_stage)
            self.parts.append(part)
        # After all stages are rendered, whose reports explain an empty part.
        for stage, part in zip(config.stages, self.parts, strict=True):
            _check_part(stage, *part)
        kept = {
            "config": config.model_dump(mode="json", exclude={"template", "base"}),
            "template": self.template,
            **hash_base(self.base),
            "data_sha256": hashes,
        }
        self.run = RunDirectory(out, kept, writes=get_accelerator().is_main_process)
        self.run.write_json("render.json", reports)

    def _render_stage(
        self, renderer: SftRenderer, stage: Stage, read_stage: Read[Spoken]
    ) -> tuple[tuple[list[SftExample], list[SftExample]], dict[str, Any]]:
        """Return the training and held-out examples of a stage, and the report on them for `render.json`.

        Raises:
            ConfigError: most records were refused.
        """
        training, report = renderer.examples([r for r in read_stage.records if not self._is_held_out(r.group)])
        held_out, held_out_report = renderer.examples([r for r in read_stage.records if self._is_held_out(r.group)])
        lost = Counter(report.lost) + Counter(held_out_report.lost)
        for line in check_refused(lost, len(read_stage.records), f"stages: {stage.name}"):
            print_once(line)
        return (training, held_out), {
            "understood": read_stage.understood,
            "dropped": read_stage.dropped,
            "training": asdict(report),
            "held_out": asdict(held_out_report),
        }

    def go(self) -> Path:
        """Run all stages from where an interrupted run stopped, then save the whole policy and return its directory.

        Raises:
            FloatingPointError: the training diverges.
            RunStopped: the state of an interrupted run is broken.
        """
        directory = self.run.path / "checkpoint"
        if self.run.read_json("results.json") is not None:
            return directory
        # Written after each stage, so that a resumed run skips those that are done.
        losses: dict[str, Any] = self.run.read_json("losses.json") or {}
        for stage, (training, held_out) in zip(self.config.stages, self.parts, strict=True):
            # A resumed run keeps the loss from before the stage; the policy has changed since.
            before = losses.get(stage.name, {}).get("before") or self._evaluate(held_out, stage)
            self._train(stage, training)
            losses[stage.name] = {"before": before, "after": self._evaluate(held_out, stage)}
            self.run.write_json("losses.json", losses)
        # A sharded policy is copied into an unsharded one, which can be saved.
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
        """Train the policy on the examples of one stage."""
        train(
            NextToken(self.policy, stage.optimizer),
            self.policy.parameters(),
            Schedule(training, stage.optimizer, self.config.seed),
            name=f"{self.config.name} {stage.name}",
            metrics=self.run.metrics(stage.name),
            resume=self.run.resume_point(stage.name),
        )

    def _evaluate(self, examples: Sequence[SftExample], stage: Stage) -> dict[str, float]:
        """Return the number of target tokens, their mean negative log-likelihood in nats, and the perplexity.

        Args:
            examples: held-out examples, which no stage trains on.
            stage: stage whose settings the forward passes use.

        Raises:
            FloatingPointError: the loss is not finite, or its perplexity would not be.
        """
        targets, total = sum(example.targets for example in examples), 0.0
        batches = list(cut_token_batches(range(len(examples)), examples, stage.optimizer.micro_batch_tokens))
        for part in tqdm(batches, desc=f"held out, {stage.name}", mininterval=10):
            # Not `inference_mode`: FSDP keeps tensors between passes, and training cannot use inference tensors.
            with torch.no_grad(), autocast(self.policy.device, stage.optimizer):
                # Summed in float64, so that the rounding of many tokens does not add up.
                total -= float(self.policy.logprobs([examples[i] for i in part]).double().sum())
        loss = total / targets
        if not loss < LARGEST_LOSS:
            raise FloatingPointError(
                f"{stage.name}: the loss on held-out examples is {loss} per token: the training diverges; lower "
                f"optimizer.learning_rate (it is {stage.optimizer.learning_rate:g})"
            )
        return {"targets": targets, "loss": loss, "perplexity": math.exp(loss)}

    def _is_held_out(self, group: str) -> bool:
        """Return whether a group of records is held out from training."""
        return assign_fold(group, folds=1, held_out=self.config.held_out, seed=self.config.seed) == HELD_OUT


def _check_part(stage: Stage, training: Sequence[SftExample], held_out: Sequence[SftExample]) -> None:
    """Raise ConfigError if a stage has nothing to train on, or nothing to test on."""
    if not (training and held_out):
        raise ConfigError(
            f"stages: {stage.name}: {len(training)} training examples and {len(held_out)} held-out ones; "
            "both parts need at least one (see held_out)"
        )


def run(config_path: Path, data: Path, out: Path | None) -> Path:
    """Run `assay train sft` and return the directory of the checkpoint.

    Args:
        config_path: YAML file of the configuration.
        data: folder with a folder for each source.
        out: run directory; None means `runs/NAME`.

    Raises:
        ValueError: the configuration, the data or the run directory is wrong.
        FloatingPointError: the training diverges.
        RunStopped: the state of an interrupted run is broken.
    """
    config = decide_compute_dtype(read(config_path, SftConfig))
    sft = SftRun(config, data, out or Path("runs") / config.name)
    checkpoint = sft.go()
    for line in describe_sft_run(sft.run.read_json("results.json") or {}, checkpoint):
        print_once(line)
    return checkpoint


def describe_sft_run(losses: Mapping[str, Any], checkpoint: Path) -> list[str]:
    """Return lines with the held-out perplexity before and after each stage, and the checkpoint.

    Args:
        losses: contents of `results.json`: loss and perplexity before and after each stage.
        checkpoint: directory of the policy.
    """
    lines = [
        f"{stage}: perplexity on {loss['after']['targets']:,} held-out tokens "
        f"{loss['before']['perplexity']:.4g} before, {loss['after']['perplexity']:.4g} after"
        for stage, loss in losses.items()
    ]
    return [*lines, *describe_policy(checkpoint)]
