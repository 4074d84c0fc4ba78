"""Compute linear layers on 8-bit integers by torch's operators, where the C++ kernels do not serve.

Weights are rounded to integers of -127 to 127 by output channel, and inputs by token. The sum of their products is
exact: a block of `_DEPTH` inputs stays below 2^24, up to which fp32 has every integer. Blocks are added as integers. So
no order of summation can change a result, and the bits are those of the kernels.
"""

import torch
from torch import nn
from torch.nn.functional import linear

LARGEST = 127  # the largest magnitude of a number
_MOST_INPUTS = 66000  # 255 * 127 * 66000 < 2^31
_DEPTH = 1040  # 127 * 127 * 1040 < 2^24


class IntegerLinear(nn.Linear):
    """A linear layer of 8-bit weights and inputs; its outputs and its bias are fp32.

    Attributes:
        scales: fp32 `[N]`, by which the integers of an output channel are multiplied.
    """

    scales: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the product, fp32 `[..., N]` from fp32 `[..., K]`."""
        numbers, scales = quantize_rows(input)
        total = torch.zeros(*input.shape[:-1], self.out_features, dtype=torch.int32, device=input.device)
        blocks = zip(numbers.split(_DEPTH, -1), self.weight.split(_DEPTH, -1), strict=True)  # type: ignore[no-untyped-call]
        for part, weight in blocks:
            total += linear(part, weight.float()).int()
        product = total.float() * (scales * self.scales)
        return product if self.bias is None else product + self.bias


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows, fp32 `[..., K]`, as integers in fp32, and their scales, fp32 `[..., 1]`.

    A row that is not finite has the scale NaN.
    """
    largest = rows.abs().amax(-1, keepdim=True)
    factors = torch.full_like(largest, LARGEST) / largest  # a number divided by a tensor is not divided exactly
    scaled = largest.isfinite() & factors.isfinite()
    numbers = torch.where(scaled, (rows * factors).round(), 0.0)
    scales = torch.where(scaled, largest / LARGEST, torch.where(largest.isfinite(), 0.0, torch.nan))
    return numbers, scales


def is_packable(layer: nn.Linear) -> bool:
    """Return whether the sums of a layer fit into 32 bits, and the kernels can read its inputs in fours."""
    return layer.in_features % 4 == 0 and layer.in_features <= _MOST_INPUTS


def make_integer(layer: nn.Linear) -> None:
    """Turn a linear layer into one of 8-bit weights, in place."""
    numbers, scales = quantize_rows(layer.weight.detach().float())
    layer.__class__ = IntegerLinear
    layer.weight = nn.Parameter(numbers.to(torch.int8), requires_grad=False)
    layer.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().float(), requires_grad=False)
    layer.register_buffer("scales", scales[..., 0], persistent=False)
