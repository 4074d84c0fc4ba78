"""Shard the layers of a model over the processes that train it, by FSDP2: each holds a part of every layer.

Nothing here has an effect unless `accelerate launch` requested FSDP. Parameters outside the layers are replicated, and
before and after training every process holds the whole model. Sharding therefore reduces the memory of gradients and
optimizer moments, and of weights during training.

Gradients are summed over processes, not averaged, because the loss of a micro-batch is its share of the whole batch's.
"""

from collections.abc import Iterable

import torch
from accelerate.utils import DistributedType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from assay_training.config.base import ConfigError
from assay_training.distributed.processes import get_accelerator


def sharding_requested() -> bool:
    """Return whether the processes were started with an FSDP configuration."""
    return bool(get_accelerator().distributed_type == DistributedType.FSDP)


def shard(model: PreTrainedModel) -> None:
    """Shard every layer that transformers declares indivisible (`_no_split_modules`), if FSDP was requested.

    This replaces the layers' parameters: collect the parameters for an optimizer afterwards.

    Raises:
        ConfigError: transformers names no layers for this architecture.
    """
    if not sharding_requested():
        return
    together = get_accelerator()
    mesh = init_device_mesh(together.device.type, (together.num_processes,))
    layers = set(model._no_split_modules or ())
    if not layers:
        raise ConfigError(
            f"base: transformers names no layers of {model.config.model_type} to shard; start without FSDP"
        )
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            # Gathered again for the backward pass: a model is sharded to save memory, not time.
            layer = fully_shard(module, mesh=mesh, reshard_after_forward=True)
            # Sum, as for replicated parameters; FSDP's default is the mean over processes.
            layer.set_gradient_divide_factor(1.0)
            layer.set_force_sum_reduction_for_comms(True)


def count_padding_passes(forwards: int) -> int:
    """Return the number of forward passes to add, so that all processes run equally many.

    Processes that shard a layer compute it together: one that runs fewer passes would make the others wait forever.
    """
    return -forwards % get_accelerator().num_processes if sharding_requested() else 0


def copy_whole(parts: Iterable[torch.Tensor], into: Iterable[torch.Tensor]) -> None:
    """Copy tensors, sharded or not, into tensors that every process holds in full; all processes must call it.

    Args:
        parts: tensors to copy, any dtype and shape.
        into: tensors of the same shapes, in the same order.
    """
    with torch.no_grad():
        for part, tensor in zip(parts, into, strict=True):
            tensor.copy_(gather_full_tensor(part))


def gather_full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the full tensor of a sharded one, or the tensor itself; all processes must call it.

    Args:
        tensor: tensor of any shape and dtype. The result has its global shape and its dtype.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def take_local_shard(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a full tensor sharded as `like` is, or the tensor itself if `like` is not sharded.

    Args:
        tensor: full tensor of any shape and dtype, the same in every process. The result has its dtype.
        like: tensor of the same global shape, whose placement is copied.
    """
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
