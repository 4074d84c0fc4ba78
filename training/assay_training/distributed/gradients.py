"""What happens to gradients between the backward pass and the optimizer, over all processes."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from assay_training.distributed.sharding import whole


def by_kind(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those that every process holds whole, and those it holds a part of; torch cannot treat both in one call."""
    kinds = [[p for p in parameters if isinstance(p, DTensor) is split] for split in (False, True)]
    return [kind for kind in kinds if kind]


def add_up(parameters: Sequence[nn.Parameter], together: Accelerator) -> None:
    """Every process gets the sum of all gradients, in one exchange; of split parameters it has its part already."""
    if together.num_processes == 1:
        return
    parameters = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if not parameters:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    summed = torch.as_tensor(together.reduce(torch.cat([g.flatten() for g in gradients]), reduction="sum"))
    parts = torch.split(summed, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).clone()


def clip(parameters: Sequence[nn.Parameter], limit: float | None) -> float:
    """Scales the gradient down to the norm `limit`, if there is one, where it is longer; returns its norm before."""
    kinds = by_kind(parameters)
    norms = [whole(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if limit is not None:
        for kind in kinds:
            nn.utils.clip_grads_with_norm_(kind, limit, norm)
    return float(norm)
