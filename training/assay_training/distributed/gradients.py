"""Sum and clip gradients over all processes, between the backward pass and the optimizer."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from assay_training.distributed.sharding import gather_full_tensor


def split_by_sharding(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return replicated and sharded parameters as separate groups, without empty ones.

    One call of torch's optimizers or norms cannot take plain tensors and sharded ones (`DTensor`) together.
    """
    kinds = [[p for p in parameters if isinstance(p, DTensor) is sharded] for sharded in (False, True)]
    return [kind for kind in kinds if kind]


def sum_gradients(parameters: Sequence[nn.Parameter], together: Accelerator) -> None:
    """Replace the gradients of replicated parameters by their sums over all processes, in one all-reduce.

    FSDP has already summed the gradients of sharded parameters.

    Args:
        parameters: trained parameters, in the same order in every process.
        together: the processes that train together.
    """
    if together.num_processes == 1:
        return
    parameters = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if not parameters:
        return
    # A process whose micro-batches did not reach a parameter has no gradient, but must join the exchange.
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    summed = torch.as_tensor(together.reduce(torch.cat([g.flatten() for g in gradients]), reduction="sum"))
    parts = torch.split(summed, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).clone()


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float | None) -> float:
    """Scale the gradient down to the norm `limit` where it is longer, and return its norm before.

    Args:
        parameters: trained parameters with gradients; the norm is that of all of them together.
        limit: largest L2 norm; None never scales.
    """
    kinds = split_by_sharding(parameters)
    norms = [
        gather_full_tensor(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds
    ]
    # The norms of the two groups combine as the norm of their vector.
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if limit is not None:
        for kind in kinds:
            nn.utils.clip_grads_with_norm_(kind, limit, norm)
    return float(norm)
