"""Run one optimizer step of any training: a batch in micro-batches, summed gradients, one update.

The loss of a micro-batch is its share of the whole batch's. Therefore neither the cut into micro-batches nor the number
of processes changes a step. Dropout is never used, so that training and serving compute the same function
(scoring-traps 20).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from assay_training.config.model import Adam
from assay_training.distributed.gradients import clip_gradients, split_by_sharding, sum_gradients
from assay_training.distributed.sharding import count_padding_passes, gather_full_tensor
from assay_training.models.batches import cut_token_batches
from assay_training.runs.metrics import find_not_finite

Shared = TypeVar("Shared")
Total = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The examples of one forward and backward pass.

    Attributes:
        examples: examples of the batch.
        share: factor of the loss: 1, or 0 for a padding pass that only keeps processes with sharded layers in step.
    """

    examples: Sequence[Any]
    share: int


class Objective(Protocol[Shared]):
    """The loss that a training minimizes, as a sum over micro-batches."""

    def begin(self, batch: Sequence[Any], mine: Sequence[MicroBatch], total: Total) -> Shared:
        """Compute what every micro-batch needs of the whole batch, such as a count or a mean, without gradient.

        Args:
            batch: all examples of the step.
            mine: micro-batches of this process.
            total: function that sums a tensor over all processes; every process must call it equally often.
        """
        ...

    def loss(self, part: Sequence[Any], shared: Shared) -> torch.Tensor:
        """Compute the share of the batch's loss that a micro-batch contributes, fp32 scalar.

        Args:
            part: examples of the micro-batch.
            shared: result of `begin`.
        """
        ...


def build_optimizer(parameters: Sequence[nn.Parameter], settings: Adam) -> torch.optim.AdamW:
    """Build AdamW for the trained parameters, with sharded parameters in a group of their own."""
    return torch.optim.AdamW(
        [{"params": kind} for kind in split_by_sharding(parameters)],
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
    """Run forward and backward passes of a batch, in micro-batches over all processes, and clip the gradient.

    Args:
        objective: loss to minimize.
        batch: all examples of the step, the same in every process.
        parameters: trained parameters of any shape; their gradients are those of the whole batch afterwards.
        settings: tokens of a micro-batch, and the norm to clip at.
        together: the processes that train together.

    Returns:
        The batch's loss, and the norm of its gradient before clipping.
    """
    cut = cut_token_batches(range(len(batch)), batch, settings.micro_batch_tokens)
    parts = [MicroBatch([batch[i] for i in part], share=1) for part in cut]
    # Padding passes repeat a micro-batch with a factor of 0, which adds nothing to loss and gradients.
    parts += [replace(parts[0], share=0)] * count_padding_passes(len(parts))
    mine = parts[together.process_index :: together.num_processes]

    def total(values: torch.Tensor) -> torch.Tensor:
        """Return a tensor of any shape, summed over all processes element by element."""
        return torch.as_tensor(together.reduce(values, reduction="sum"))

    shared = objective.begin(batch, mine, total)
    # In float64, so that the reported loss hardly depends on the cut into micro-batches.
    loss = torch.zeros((), dtype=torch.float64, device=together.device)
    for part in mine:
        contribution = objective.loss(part.examples, shared) * part.share
        contribution.backward()  # type: ignore[no-untyped-call]
        loss += contribution.detach()
    batch_loss = float(total(loss))
    sum_gradients(parameters, together)
    return batch_loss, clip_gradients(parameters, settings.max_grad_norm)


def update(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Update the parameters at a learning rate, and clear their gradients."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # frees the memory until the next backward pass


def check_numbers(where: str, numbers: Mapping[str, float], settings: Adam) -> None:
    """Check that the numbers of a step are finite, before any process keeps a result of the step.

    Args:
        where: run and step, for the message.
        numbers: loss, norm and metrics by name.
        settings: settings of the optimizer, whose values the message names.

    Raises:
        FloatingPointError: a number is not finite; the message names step, number and the settings to lower.
    """
    fault = next(find_not_finite(numbers), None)
    if fault is not None:
        norm = "it is not set" if settings.max_grad_norm is None else f"it is {settings.max_grad_norm:g}"
        raise FloatingPointError(
            f"{where}: {fault[0]} is {fault[1]}: the training diverges; lower optimizer.learning_rate (it is "
            f"{settings.learning_rate:g}), or lower optimizer.max_grad_norm ({norm})"
        )


def check_finite(parameters: Sequence[nn.Parameter], where: str) -> None:
    """Check that all trained parameters are finite, before a state with them is written.

    Raises:
        FloatingPointError: a parameter is not finite.
    """
    if not all(bool(gather_full_tensor(torch.isfinite(parameter).all())) for parameter in parameters):
        raise FloatingPointError(f"{where}: a trained parameter is not finite; lower optimizer.learning_rate")
