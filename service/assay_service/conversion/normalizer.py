"""Fold the normalizer of a score model of safe-rlhf into its head, so that a plain linear layer gives its scores."""

from collections.abc import Mapping
from typing import Any

import torch

from assay_service.conversion.formats import NormalizeFunction
from assay_service.errors import StartError

# The number that safe-rlhf adds to the standard deviation.
_EPSILON = 1e-8


def read_moments(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], where: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of a normalizer, fp64 `[1]` each: its buffers, else the values in `config.json`.

    Args:
        tensors: tensors of the normalizer by their last name: `mean`, `var` and `count`.
        config: `config.json` of the source.
        where: name of the source in errors.

    Raises:
        StartError: a value is missing, not a single number, or not finite; or the variance is not positive.
    """
    moments = []
    for name in ("mean", "var"):
        # Buffers first, because the model computes with them.
        value = tensors.get(name, config.get(name))
        if value is None:
            raise StartError(
                f"{where}: do_normalize is true, but there is neither a tensor normalizer.{name} nor `{name}` in "
                "config.json; download the checkpoint again, or set do_normalize to false for scores without it"
            )
        moment = torch.as_tensor(value, dtype=torch.float64).flatten()
        if moment.numel() != 1 or not torch.isfinite(moment).all() or (name == "var" and moment.item() <= 0):
            raise StartError(
                f"{where}: normalizer.{name} is {moment.tolist()}, but must be one finite number"
                f"{' above 0' if name == 'var' else ''}; download the checkpoint again"
            )
        moments.append(moment)
    return moments[0], moments[1]


def fold(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    function: NormalizeFunction,
    mean: torch.Tensor,
    var: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return weight and bias of the head whose output is the normalized one, computed in fp64 and returned in fp32.

    Args:
        weight: weight of the head, `[1, H]`.
        bias: bias of the head, `[1]`, or None.
        function: `affine` subtracts the mean and divides by the standard deviation, `scale` only divides.
        mean: mean of the head's output in training, fp64 `[1]`.
        var: variance of the head's output in training, fp64 `[1]`.
    """
    if function == "identity":
        return weight, bias
    # In fp64, so that folding rounds once, at the end.
    std = var.sqrt() + _EPSILON
    shifted = None if bias is None else bias.double()
    if function == "affine":
        shifted = -mean if shifted is None else shifted - mean
    return (weight.double() / std).float(), None if shifted is None else (shifted / std).float()
