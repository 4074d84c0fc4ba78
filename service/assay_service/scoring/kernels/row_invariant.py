"""Compute matrix products and activations so that no row depends on how many rows are computed together.

A library picks its kernel by the number of rows, and two kernels may add the same products in another order. So each
weight is tried at every row count that a row of tokens may have (see `layout.STEP_TOKENS`). Only those counts are used
that give the bits of the largest count; the others are cut into some of these. On two AMX cores (torch 2.13, bf16,
768-wide) 64 to 512 rows disagree with 1,024, but agree if the product is computed transposed.

Elementwise kernels split their numbers between threads and compute each share in vectors. The remainder of a share is
computed one by one, and some activations then give other bits than in a vector. The size of the remainder depends on
the total count of numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from assay_service.scoring.kernels.widen import WidenedLinear
from assay_service.scoring.layout import STEP_TOKENS

# The row count whose result the others must reproduce; a longer row is computed in several blocks.
LARGEST_TOKENS = 2048

# Rows are rotated by these counts, and their products must be the same bits, only rotated. The counts are not multiples
# of a kernel's tile, so every row is tried at other places within a tile.
_SHIFTS = (1, 29, 1003)

# Count of numbers that one thread computes without a remainder: below torch's grain size, and a multiple of a vector.
_SLICE = 16384

# Attributes under which the served architectures of transformers keep their activations.
_ACTIVATIONS = ("act_fn", "act", "intermediate_act_fn", "activation_fn")


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that one call computes.

    Attributes:
        rows: number of rows.
        transposed: whether the product is computed as (W xᵀ)ᵀ.
    """

    rows: int
    transposed: bool


class NotInvariant(RuntimeError):
    """Raised if no way was found to compute a product whose rows do not depend on each other."""


def find_agreeing_blocks(weight: torch.Tensor, bias: torch.Tensor | None) -> dict[int, Block]:
    """Return the blocks in which the product with `weight` has the bits of `LARGEST_TOKENS` rows, by row count.

    Random rows are computed `LARGEST_TOKENS` at once, again in another order, and then fewer at a time. Another order
    of summation shows in about one of a thousand bf16 numbers, so thousands are compared, not a few.

    Args:
        weight: weight of the layer, `[N, K]`, on its device and in its dtype.
        bias: bias of the layer, `[N]`, or None.

    Raises:
        NotInvariant: even within one call, a row depends on its position.
    """
    generator = torch.Generator().manual_seed(0)  # a fixed seed: every start of a service decides the same
    rows = torch.randn(LARGEST_TOKENS, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
    expected = linear(rows, weight, bias)
    for shift in _SHIFTS:
        if not torch.equal(linear(rows.roll(shift, 0), weight, bias), expected.roll(shift, 0)):
            raise NotInvariant(
                f"the rows of a product with a weight of {list(weight.shape)} {weight.dtype} depend on their position"
            )
    agreeing = {}
    # The first and the last rows are compared: they begin at other addresses and fall into other tiles.
    for count in range(STEP_TOKENS, LARGEST_TOKENS + 1, STEP_TOKENS):
        parts = [(rows[:count], expected[:count]), (rows[-count:], expected[-count:])]
        for block in (Block(count, transposed=False), Block(count, transposed=True)):
            products = (multiply(part, weight, bias, transposed=block.transposed) for part, _ in parts)
            if all(torch.equal(product, right) for product, (_, right) in zip(products, parts, strict=True)):
                agreeing[count] = block
                break
    return agreeing


def needs_transposing(weight: torch.Tensor, rows: int) -> bool:
    """Return whether a product of always `rows` rows is computed transposed, so that no row depends on its place.

    Args:
        weight: weight, `[N, K]`, on its device and in its dtype.
        rows: number of rows.

    Raises:
        NotInvariant: a row depends on its place, whether the product is computed transposed or not.
    """
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(rows, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
    for transposed in (False, True):
        product = multiply(example, weight, None, transposed=transposed)
        moved = (multiply(example.roll(shift, 0), weight, None, transposed=transposed) for shift in _SHIFTS)
        if all(torch.equal(part, product.roll(shift, 0)) for part, shift in zip(moved, _SHIFTS, strict=True)):
            return transposed
    raise NotInvariant(f"the rows of a product with a weight of {list(weight.shape)} depend on their position")


def cover(rows: int, agreeing: Mapping[int, Block]) -> tuple[Block, ...]:
    """Return blocks that cover `rows` rows, the largest first; the last block may reach beyond the end.

    Args:
        rows: positive number of rows.
        agreeing: usable blocks, keyed by row count; not empty.
    """
    if rows in agreeing:  # nearly always, since rows come in multiples of STEP_TOKENS
        return (agreeing[rows],)
    blocks = []
    while rows > 0:
        fitting = [count for count in agreeing if count <= rows]
        block = agreeing[max(fitting) if fitting else min(agreeing)]
        blocks.append(block)
        rows -= block.rows
    return tuple(blocks)


class RowInvariantLinear(nn.Linear):
    """A linear layer whose output rows depend on their input row only.

    Attributes:
        agreeing: usable blocks, keyed by row count, from `find_agreeing_blocks`.
    """

    agreeing: Mapping[int, Block]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the product, `[..., N]` from `[..., K]`, in the dtype of the input."""
        flat = input.reshape(-1, self.in_features)
        blocks = cover(flat.shape[0], self.agreeing)
        weight = self.weight.to(flat.dtype)  # the same tensor, unless the weight is widened
        if len(blocks) == 1 and blocks[0].rows == flat.shape[0]:
            output = multiply(flat, weight, self.bias, transposed=blocks[0].transposed)
        else:
            output = self._multiply_in_blocks(flat, weight, blocks)
        return output.view(*input.shape[:-1], self.out_features)

    def _multiply_in_blocks(self, flat: torch.Tensor, weight: torch.Tensor, blocks: tuple[Block, ...]) -> torch.Tensor:
        """Compute the product `[rows, N]` block by block; rows of zeros fill the last block."""
        rows = flat.shape[0]
        padded = torch.cat([flat, flat.new_zeros(sum(block.rows for block in blocks) - rows, flat.shape[1])])
        parts = zip(torch.split(padded, [block.rows for block in blocks]), blocks, strict=True)
        products = [multiply(part, weight, self.bias, transposed=block.transposed) for part, block in parts]
        return torch.cat(products)[:rows]


class SlicedActivation(nn.Module):
    """An activation that is computed in slices, so that no thread has a remainder.

    Args:
        activation: elementwise activation.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the activation of `input`, in its shape and dtype; its size is a multiple of `STEP_TOKENS`."""
        slices = input.reshape(-1).split(_SLICE)  # type: ignore[no-untyped-call]
        return torch.cat([self.activation(part) for part in slices]).view_as(input)


def has_remainders(activation: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether `activation` gives a number other bits in the remainder of a thread's share than in a vector."""
    numbers = torch.linspace(-8, 8, 4096, device=device).to(dtype)
    whole = activation(numbers)
    return not all(torch.equal(activation(numbers[i : i + 1]), whole[i : i + 1]) for i in range(0, 4096, 7))


def make_invariant(model: nn.Module, dtype: torch.dtype) -> None:
    """Make all linear layers and activations of `model` independent of how many rows they compute, in place.

    Args:
        model: model.
        dtype: dtype of the inputs of its layers, to which narrower weights are widened.

    Raises:
        NotInvariant: a product cannot be computed so; the message names its shape.
    """
    known: dict[tuple[object, ...], dict[int, Block]] = {}  # trying is slow, and many layers have the same shape
    for module in model.modules():
        if type(module) in (nn.Linear, WidenedLinear):
            layer: Any = module
            key = (*layer.weight.shape, layer.bias is None)
            if key not in known:
                with torch.inference_mode():
                    known[key] = find_agreeing_blocks(layer.weight.to(dtype), layer.bias)
            layer.__class__ = RowInvariantLinear
            layer.agreeing = known[key]
    _slice_activations(model, dtype)


def _slice_activations(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the activations that have remainders by sliced ones, in place."""
    device = next(model.parameters()).device
    known: dict[type[nn.Module], bool] = {}  # the layers of a base have activations of the same type
    for module in list(model.modules()):
        for name in _ACTIVATIONS:
            activation = getattr(module, name, None)
            if not isinstance(activation, nn.Module):
                continue
            if type(activation) not in known:
                known[type(activation)] = has_remainders(activation, dtype, device)
            if known[type(activation)]:
                setattr(module, name, SlicedActivation(activation))


def multiply(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, transposed: bool) -> torch.Tensor:
    """Return the product `[rows, N]`, computed as it is or transposed."""
    if not transposed:
        return linear(rows, weight, bias)
    product = linear(weight, rows).t()
    return product.contiguous() if bias is None else product + bias
