"""The one supervised loop: pretraining, SFT and both kinds of reward model differ only in their objective.

Every micro-batch's loss is its share of the whole batch's, so neither the cut into micro-batches nor the number of
processes changes a step. There is no dropout: a row is the same function in training and in serving (scoring-traps 20).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from assay_training.algorithms.schedule import learning_rate_share, random_batches
from assay_training.config.model import Optimiser
from assay_training.examples import token_batches
from assay_training.processes import accelerator
from assay_training.resume import ResumePoint
from assay_training.rundir import Metrics

Shared = TypeVar("Shared")
Total = Callable[[torch.Tensor], torch.Tensor]


class Objective(Protocol[Shared]):
    """What a step makes smaller."""

    def begin(self, batch: Sequence[Any], mine: Sequence[Sequence[Any]], total: Total) -> Shared:
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
        parameters, betas=settings.betas, eps=settings.epsilon, weight_decay=settings.weight_decay
    )
    start, batches, main = resume.load(parameters, optimiser), schedule.batches(), together.is_main_process
    if main:
        metrics.begin(start)
    for step in tqdm(range(start, len(batches)), name, len(batches), initial=start, mininterval=10, disable=not main):
        loss = _accumulate(objective, [schedule.examples[i] for i in batches[step]], settings, together)
        if not math.isfinite(loss):
            raise FloatingPointError(f"{name}: the loss is {loss} at step {step}")
        _sum_gradients(parameters, together)
        norm = float(nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm))
        rate = schedule.learning_rate(step)
        if main:
            metrics.log({"step": step, "loss": loss, "learning_rate": rate, "grad_norm": norm})
        _update(optimiser, rate)
        if main and ((step + 1) % settings.checkpoint_steps == 0 or step + 1 == len(batches)):
            resume.save(step + 1, parameters, optimiser)
    if main:
        metrics.end()
    together.wait_for_everyone()


def _accumulate(objective: Objective[Any], batch: Sequence[Any], settings: Optimiser, together: Accelerator) -> float:
    """Forward and backward of this process' share of a batch, in micro-batches; returns the whole batch's loss."""
    parts = [[batch[i] for i in part] for part in token_batches(range(len(batch)), batch, settings.micro_batch_tokens)]
    mine = parts[together.process_index :: together.num_processes]

    def total(values: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(together.reduce(values, reduction="sum"))

    shared = objective.begin(batch, mine, total)
    loss = torch.zeros((), dtype=torch.float64, device=together.device)
    for part in mine:
        contribution = objective.loss(part, shared)
        contribution.backward()  # type: ignore[no-untyped-call]
        loss += contribution.detach()
    return float(total(loss))


def _update(optimiser: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def _sum_gradients(parameters: list[nn.Parameter], together: Accelerator) -> None:
    """Every process gets the sum of all processes' gradients, in one exchange."""
    if together.num_processes == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    summed = torch.as_tensor(together.reduce(torch.cat([g.flatten() for g in gradients]), reduction="sum"))
    parts = torch.split(summed, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).clone()
