"""Weights of a model's layers spread over the processes that train it (FSDP2): each holds a part of every layer.

Where `accelerate launch` did not ask for FSDP, nothing here does anything. What is no layer stays whole in every
process, and before and after training every process holds all of the model: what is saved is gradients and moments,
and weights while training. Gradients are summed, not averaged: a micro-batch's loss is its share of the whole batch's.
"""

from collections.abc import Iterable

import torch
from accelerate.utils import DistributedType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from assay_training.config.base import ConfigError
from assay_training.distributed.processes import accelerator


def sharding_requested() -> bool:
    """Whether the processes were started with an FSDP configuration."""
    return bool(accelerator().distributed_type == DistributedType.FSDP)


def shard(model: PreTrainedModel) -> None:
    """Spreads the layers that transformers calls indivisible; their parameters become others, so ask for them after.

    Raises:
        ConfigError: transformers names no layers for this architecture.
    """
    if not sharding_requested():
        return
    together = accelerator()
    mesh = init_device_mesh(together.device.type, (together.num_processes,))
    layers = set(model._no_split_modules or ())
    if not layers:
        raise ConfigError(f"base: transformers names no layers of {model.config.model_type} to spread")
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            layer = fully_shard(module, mesh=mesh, reshard_after_forward=True)
            layer.set_gradient_divide_factor(1.0)
            layer.set_force_sum_reduction_for_comms(True)


def idle(forwards: int) -> int:
    """How many more forwards there must be, so that every process runs equally many: they compute a layer together."""
    return -forwards % accelerator().num_processes if sharding_requested() else 0


def copy_whole(parts: Iterable[torch.Tensor], into: Iterable[torch.Tensor]) -> None:
    """Copies what is spread over the processes into tensors that each of them holds whole; every process must ask."""
    with torch.no_grad():
        for part, tensor in zip(parts, into, strict=True):
            tensor.copy_(whole(part))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor of which this process holds a part; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_of(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What this process holds of a whole tensor, if it holds a part of `like`."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
