"""The one supervised loop: pretraining, SFT and both kinds of reward model differ only in their objective.

Every micro-batch's loss is its share of the whole batch's, so neither the cut into micro-batches nor the number of
processes changes a step. There is no dropout: a row is the same function in training and in serving (scoring-traps 20).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from assay_training.algorithms.schedule import learning_rate_share, random_batches
from assay_training.config.model import Optimiser
from assay_training.examples import token_batches
from assay_training.gradients import add_up, by_kind, clip
from assay_training.processes import accelerator
from assay_training.resume import ResumePoint
from assay_training.rundir import Metrics
from assay_training.sharding import idle

Shared = TypeVar("Shared")
Total = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward takes.

    Attributes:
        examples: of the batch.
        share: 1; or 0, where a process only keeps step with others, as those that hold a layer together must.
    """

    examples: Sequence[Any]
    share: int


class Objective(Protocol[Shared]):
    """What a step makes smaller."""

    def begin(self, batch: Sequence[Any], mine: Sequence[MicroBatch], total: Total) -> Shared:
        """What every micro-batch must know of the whole batch; without gradient.

        Args:
            batch: all examples of the step.
            mine: this process' micro-batches.
            total: sums a tensor over all processes; every process must call it equally often.
        """
        ...

    def loss(self, part: Sequence[Any], shared: Shared) -> torch.Tensor:
        """The share of the batch's loss that a micro-batch contributes; fp32 scalar."""
        ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """When which examples are seen, and at what rate; follows from its fields alone.

    Attributes:
        examples: of an epoch.
        settings: the optimiser's.
        seed: of their order.
    """

    examples: Sequence[Any]
    settings: Optimiser
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
    metrics: Metrics,
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
        FloatingPointError: the loss is not finite.
    """
    together, settings = accelerator(), schedule.settings
    optimiser = torch.optim.AdamW(
        [{"params": kind} for kind in by_kind(parameters)],
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    start, batches, main = resume.load(parameters, optimiser), schedule.batches(), together.is_main_process
    if main:
        metrics.begin(start)
    for step in tqdm(range(start, len(batches)), name, len(batches), initial=start, mininterval=10, disable=not main):
        loss = _accumulate(objective, [schedule.examples[i] for i in batches[step]], settings, together)
        if not math.isfinite(loss):
            raise FloatingPointError(f"{name}: the loss is {loss} at step {step}")
        add_up(parameters, together)
        norm = clip(parameters, settings.max_grad_norm)
        rate = schedule.learning_rate(step)
        if main:
            metrics.log({"step": step, "loss": loss, "learning_rate": rate, "grad_norm": norm})
        _update(optimiser, rate)
        if (step + 1) % settings.checkpoint_steps == 0 or step + 1 == len(batches):
            resume.save(step + 1, parameters, optimiser, writes=main)
    if main:
        metrics.end()
    together.wait_for_everyone()


def _accumulate(objective: Objective[Any], batch: Sequence[Any], settings: Optimiser, together: Accelerator) -> float:
    """Forward and backward of this process' share of a batch, in micro-batches; returns the whole batch's loss."""
    cut = token_batches(range(len(batch)), batch, settings.micro_batch_tokens)
    parts = [MicroBatch([batch[i] for i in part], share=1) for part in cut]
    parts += [replace(parts[0], share=0)] * idle(len(parts))
    mine = parts[together.process_index :: together.num_processes]

    def total(values: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(together.reduce(values, reduction="sum"))

    shared = objective.begin(batch, mine, total)
    loss = torch.zeros((), dtype=torch.float64, device=together.device)
    for part in mine:
        contribution = objective.loss(part.examples, shared) * part.share
        contribution.backward()  # type: ignore[no-untyped-call]
        loss += contribution.detach()
    return float(total(loss))


def _update(optimiser: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
