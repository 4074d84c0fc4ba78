"""Compute linear layers on the C++ kernels, with weights that are packed in panels, and find the layers to pack."""

from typing import Any

import torch
from torch import nn

from assay_service.scoring.kernels.integer_linear import IntegerLinear


class PackedLinear(nn.Linear):
    """A linear layer whose weight is stored in panels for the kernels; its bias is fp32.

    Attributes:
        panels: weight in the layout that the kernels read. `weight` holds the same tensor, or the original one for
            adapters that read it.
        bias32: bias in fp32, or None.
    """

    panels: torch.Tensor
    bias32: torch.Tensor | None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the product, `[..., N]` from `[..., K]`, in the dtype of the input."""
        product: torch.Tensor = torch.ops.assay.linear(input, self.panels, self.bias32, self.out_features)
        return product


def unwrap_idle(linear: Any) -> nn.Module:  # noqa: ANN401 - a layer, or PEFT's around it
    """Return the layer itself if no adapter around it is active; then it computes as on a base without adapters."""
    layer: nn.Module = linear
    if hasattr(linear, "base_layer"):
        idle = linear.disable_adapters or not any(name in linear.lora_A for name in linear.active_adapters)
        layer = linear.base_layer if idle else linear
    return layer


def add_product(hidden: torch.Tensor, linear: nn.Module, x: torch.Tensor) -> None:
    """Add `linear(x)` to `hidden`, `[1, T, H]`, in place; `x` is `[1, T, K]`."""
    layer = unwrap_idle(linear)
    if type(layer) is PackedLinear:
        torch.ops.assay.linear_add(hidden, x, layer.panels, layer.bias32)
    else:
        hidden += layer(x)


def find_doras(base: nn.Module) -> tuple[set[nn.Module], set[nn.Module]]:
    """Return the modules of DoRA adapters, and the layers around which they are and whose weights they read.

    Other adapters around the same layers, and layers without any, are computed as on a base without DoRA.
    """
    own: set[nn.Module] = set()
    around: set[nn.Module] = set()
    for module in base.modules():
        doras = {name for name, is_dora in getattr(module, "use_dora", {}).items() if is_dora}
        for name, part in module.named_children() if doras else ():
            if name == "base_layer":
                around.add(part)
            elif isinstance(part, nn.ModuleDict):  # its keys are the names of adapters
                own.update(inner for key in doras & set(part) for inner in part[key].modules())
    return own, around


def pack_linear(linear: nn.Linear, dtype: torch.dtype, *, keep: bool) -> None:
    """Turn a linear layer into a packed one, in place; a layer whose width cannot be packed stays as it is.

    Args:
        linear: layer to pack.
        dtype: dtype of its inputs; a weight of another dtype is widened a panel at a time when it is multiplied.
        keep: whether its original weight and bias stay beside the packed ones.
    """
    widened = linear.weight.dtype != dtype
    if dtype == torch.bfloat16 and linear.in_features % 2:  # the kernels read bf16 numbers in pairs
        return
    _use_panels(linear, torch.ops.assay.pack(linear.weight.detach(), widened), keep=keep)


def pack_integer_linear(linear: IntegerLinear) -> None:
    """Turn a linear layer of integers into a packed one, in place."""
    panels = torch.ops.assay.pack_integers(linear.weight.detach(), linear.scales)
    del linear.scales
    _use_panels(linear, panels, keep=False)


def _use_panels(linear: nn.Linear, panels: torch.Tensor, *, keep: bool) -> None:
    linear.__class__ = PackedLinear
    bias = None if linear.bias is None else linear.bias.detach().float()
    if not keep:  # free the original: a second copy of every weight would double the memory of a base
        linear.weight = nn.Parameter(panels, requires_grad=False)
        linear.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    linear.register_buffer("panels", panels, persistent=False)
    linear.register_buffer("bias32", bias, persistent=False)
