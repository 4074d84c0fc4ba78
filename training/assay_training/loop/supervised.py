"""The one supervised loop: pretraining, SFT and both kinds of reward model differ only in their objective."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from tqdm import tqdm

from assay_training.algorithms.schedule import learning_rate_share, random_batches
from assay_training.config.model import OptimizerConfig
from assay_training.distributed.processes import accelerator
from assay_training.loop.step import Objective, accumulate, build_optimizer, check_finite, check_numbers, update
from assay_training.runs.metrics import MetricsWriter
from assay_training.runs.resume import ResumePoint


@dataclass(frozen=True, slots=True)
class Schedule:
    """When which examples are seen, and at what rate; follows from its fields alone.

    Attributes:
        examples: of an epoch.
        settings: the optimizer's.
        seed: of their order.
    """

    examples: Sequence[Any]
    settings: OptimizerConfig
    seed: int

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.settings.epochs * math.ceil(len(self.examples) / self.settings.batch_prompts)

    def batches(self) -> list[list[int]]:
        """Indices of the examples of each step."""
        settings = self.settings
        return list(random_batches(len(self.examples), settings.batch_prompts, settings.epochs, self.seed))

    def learning_rate(self, step: int) -> float:
        """At a step."""
        return self.settings.learning_rate * learning_rate_share(step, self.steps, self.settings.warmup_share)


def train(
    objective: Objective[Any],
    parameters: list[nn.Parameter],
    schedule: Schedule,
    *,
    name: str,
    metrics: MetricsWriter,
    resume: ResumePoint,
) -> None:
    """Trains `parameters` in place, from where an interrupted run left off.

    Args:
        objective: what is made smaller.
        parameters: what is trained; equal on all processes.
        schedule: of the examples.
        name: for the progress bar.
        metrics: gets a row per step, from the main process: `step`, `loss`, `learning_rate`, `grad_norm`.
        resume: where the state is kept.

    Raises:
        FloatingPointError: the loss, the gradient's norm, or what has been trained is not finite.
    """
    together, settings = accelerator(), schedule.settings
    optimizer = build_optimizer(parameters, settings)
    (start, _), batches, main = resume.load(parameters, optimizer), schedule.batches(), together.is_main_process
    if main:
        metrics.begin(start)
    for step in tqdm(range(start, len(batches)), name, len(batches), initial=start, mininterval=10, disable=not main):
        batch = [schedule.examples[i] for i in batches[step]]
        loss, norm = accumulate(objective, batch, parameters, settings, together)
        check_numbers(f"{name}: step {step}", {"loss": loss, "grad_norm": norm}, settings)
        rate = schedule.learning_rate(step)
        if main:
            metrics.log({"step": step, "loss": loss, "learning_rate": rate, "grad_norm": norm})
        update(optimizer, rate)
        if (step + 1) % settings.checkpoint_steps == 0 or step + 1 == len(batches):
            check_finite(parameters, f"{name}: step {step}")
            resume.save(step + 1, parameters, optimizer, writes=main)
    if main:
        metrics.end()
    together.wait_for_everyone()
