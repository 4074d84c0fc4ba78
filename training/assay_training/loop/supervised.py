"""Run the supervised loop that pretraining, SFT and both kinds of reward model share; only their objectives differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from tqdm import tqdm

from assay_training.algorithms.schedule import compute_learning_rate_share, draw_random_batches
from assay_training.config.model import OptimizerConfig
from assay_training.distributed.processes import get_accelerator
from assay_training.loop.step import Objective, accumulate, build_optimizer, check_finite, check_numbers, update
from assay_training.runs.metrics import MetricsWriter
from assay_training.runs.resume import ResumePoint


@dataclass(frozen=True, slots=True)
class Schedule:
    """The order of the examples and the learning rate of every step; both follow from the fields alone.

    Attributes:
        examples: examples of one epoch.
        settings: settings of the optimizer: epochs, batch size, peak learning rate and warm-up.
        seed: seed of the orders.
    """

    examples: Sequence[Any]
    settings: OptimizerConfig
    seed: int

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps of the whole run."""
        return self.settings.epochs * math.ceil(len(self.examples) / self.settings.batch_prompts)

    def batches(self) -> list[list[int]]:
        """Return the indices of the examples of each step."""
        settings = self.settings
        return list(draw_random_batches(len(self.examples), settings.batch_prompts, settings.epochs, self.seed))

    def learning_rate(self, step: int) -> float:
        """Return the learning rate at a step, counted from 0."""
        return self.settings.learning_rate * compute_learning_rate_share(step, self.steps, self.settings.warmup_share)


def train(
    objective: Objective[Any],
    parameters: list[nn.Parameter],
    schedule: Schedule,
    *,
    name: str,
    metrics: MetricsWriter,
    resume: ResumePoint,
) -> None:
    """Train `parameters` in place, from the step at which an interrupted run stopped.

    Args:
        objective: loss to minimize.
        parameters: trained parameters, equal in all processes.
        schedule: examples, their order and the learning rate.
        name: name of the training, for the progress bar and errors.
        metrics: writer of a row for each step with `step`, `loss`, `learning_rate` and `grad_norm`; the main process
            alone writes.
        resume: file with the state of the training.

    Raises:
        FloatingPointError: the loss, the norm of the gradient, or a trained parameter is not finite.
    """
    together, settings = get_accelerator(), schedule.settings
    optimizer = build_optimizer(parameters, settings)
    # All batches are drawn again: the order depends on the seed alone, so a resumed run sees the same.
    (start, _), batches, main = resume.load(parameters, optimizer), schedule.batches(), together.is_main_process
    if main:
        metrics.begin(start)
    for step in tqdm(range(start, len(batches)), name, len(batches), initial=start, mininterval=10, disable=not main):
        batch = [schedule.examples[i] for i in batches[step]]
        loss, norm = accumulate(objective, batch, parameters, settings, together)
        # Before the update, so that neither metrics nor parameters ever hold a number that is not finite.
        check_numbers(f"{name}: step {step}", {"loss": loss, "grad_norm": norm}, settings)
        # From the step, not from a scheduler, which would be one more state to store.
        rate = schedule.learning_rate(step)
        if main:
            metrics.log({"step": step, "loss": loss, "learning_rate": rate, "grad_norm": norm})
        update(optimizer, rate)
        if (step + 1) % settings.checkpoint_steps == 0 or step + 1 == len(batches):
            # A finite gradient can still overflow a parameter, and a stored one would break every resumed run.
            check_finite(parameters, f"{name}: step {step}")
            resume.save(step + 1, parameters, optimizer, writes=main)
    if main:
        metrics.end()
    # No process reads the metrics or the state before the main process has written them.
    together.wait_for_everyone()
