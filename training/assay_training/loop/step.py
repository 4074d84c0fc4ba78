"""One step of any training: a batch in micro-batches, gradients added up, one update.

Every micro-batch's loss is its share of the whole batch's, so neither the cut into micro-batches nor the number of
processes changes a step. There is no dropout: a row is the same function in training and in serving (scoring-traps 20).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from assay_training.config.model import Adam
from assay_training.distributed.gradients import add_up, by_kind, clip
from assay_training.distributed.sharding import idle, whole
from assay_training.models.batches import token_batches
from assay_training.runs.metrics import not_finite

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


def build_optimizer(parameters: Sequence[nn.Parameter], settings: Adam) -> torch.optim.AdamW:
    """AdamW as it is configured."""
    return torch.optim.AdamW(
        [{"params": kind} for kind in by_kind(parameters)],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )


def accumulate(
    objective: Objective[Any],
    batch: Sequence[Any],
    parameters: Sequence[nn.Parameter],
    settings: Adam,
    together: Accelerator,
) -> tuple[float, float]:
    """Forward and backward of a batch, in micro-batches, over all processes.

    Returns:
        The batch's loss, and the norm of its gradient before it was clipped.
    """
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
    whole = float(total(loss))
    add_up(parameters, together)
    return whole, clip(parameters, settings.max_grad_norm)


def update(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Steps, and forgets the gradients."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def check_numbers(where: str, numbers: Mapping[str, float], settings: Adam) -> None:
    """Check that the numbers of a step are finite, on every process, before anything of it is kept.

    Raises:
        FloatingPointError: naming the step, the number, and what may help.
    """
    lost = next(not_finite(numbers), None)
    if lost is not None:
        norm = "it is not set" if settings.max_grad_norm is None else f"it is {settings.max_grad_norm:g}"
        raise FloatingPointError(
            f"{where}: {lost[0]} is {lost[1]}: the training diverges; lower optimizer.learning_rate (it is "
            f"{settings.learning_rate:g}), or lower optimizer.max_grad_norm ({norm})"
        )


def check_finite(parameters: Sequence[nn.Parameter], where: str) -> None:
    """What has been trained is made of numbers; raises FloatingPointError before anything else is kept."""
    if not all(bool(whole(torch.isfinite(parameter).all())) for parameter in parameters):
        raise FloatingPointError(f"{where}: what is trained is no longer finite; lower optimizer.learning_rate")
