"""Decide for each layer of a base in which numbers it computes, and give it these numbers."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from assay_service.scoring.compute import Number
from assay_service.scoring.kernels.experts import split_experts
from assay_service.scoring.kernels.integer_linear import is_packable, make_integer
from assay_service.scoring.kernels.packed_linear import find_doras
from assay_service.scoring.kernels.widen import WidenedLinear, widen


def use_numbers(base: PreTrainedModel, compute: Number) -> None:
    """Let the layers of a base compute in these numbers, in place, once all adapters are on it.

    Args:
        base: base; the experts of a mixture become linear layers.
        compute: numbers. For `int8` the base's own linear layers become integers. Everything else computes in fp32:
            adapters, the choice of experts, and layers whose weights are read by DoRA or whose width does not fit.
    """
    split_experts(base)
    if compute in ("float32", "int8"):
        widen(base)
    if compute == "int8":
        for layer in find_own_layers(base):
            make_integer(layer)


def find_own_layers(base: PreTrainedModel) -> list[nn.Linear]:
    """Return the linear layers that can compute in integers."""
    _, around = find_doras(base)
    found: list[nn.Linear] = []
    for name, module in base.named_modules():
        layer: Any = module
        added = any(part.startswith("lora_") for part in name.split("."))
        routes = name.endswith("gate.linear")  # a small error would choose another expert
        if type(layer) in (nn.Linear, WidenedLinear) and not added and not routes and layer not in around:
            found += [layer] if is_packable(layer) else []
    return found
