"""Matrix products, and activations, whose rows do not depend on how many rows are computed together.

A library picks its kernel by the number of rows, and two kernels may add the same products in another order. So each
weight is tried at every row count that a row may have (see `layout.STEP_TOKENS`), and only those are used that give,
bit for bit, what the largest gives; others are cut into some that do. On two AMX cores (torch 2.13, bf16, 768-wide)
64 to 512 rows disagree with 1,024, but agree if the product is computed transposed.

Elementwise kernels compute what is left over of a thread's share of the numbers one by one, and some activations then
come out otherwise than from a vector. How much is left over depends on how many numbers there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import linear

from assay_service.scoring.layout import STEP_TOKENS

LARGEST_TOKENS = 2048

# Rows that are cyclically moved by these counts must come out as before, only moved.
_SHIFTS = (1, 29, 1003)

# Numbers that one thread computes without a remainder: fewer than torch's grain, and whole vectors.
_SLICE = 16384

_ACTIVATIONS = ("act_fn", "act", "intermediate_act_fn")


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that are computed by one call.

    Attributes:
        rows: how many.
        transposed: the product is computed as (W xᵀ)ᵀ.
    """

    rows: int
    transposed: bool


class NotInvariant(RuntimeError):
    """No way of computing a product was found whose rows do not depend on each other."""


def agreeing_blocks(weight: torch.Tensor, bias: torch.Tensor | None) -> dict[int, Block]:
    """The row counts at which the product with `weight` agrees with that at `LARGEST_TOKENS`, and how.

    Random rows are computed `LARGEST_TOKENS` at once, and again in another order, and then fewer at a time. Another
    order of summation shows in about one of a thousand bf16 numbers, so thousands are compared, not a few.

    Args:
        weight: `[N, K]`, on its device and in its dtype.
        bias: `[N]`, or None.

    Raises:
        NotInvariant: not even the rows of one call are independent of their position.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(LARGEST_TOKENS, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
    expected = linear(rows, weight, bias)
    for shift in _SHIFTS:
        if not torch.equal(linear(rows.roll(shift, 0), weight, bias), expected.roll(shift, 0)):
            raise NotInvariant(
                f"the rows of a product with {list(weight.shape)} {weight.dtype} depend on their position"
            )
    found = {}
    for count in range(STEP_TOKENS, LARGEST_TOKENS + 1, STEP_TOKENS):
        parts = [(rows[:count], expected[:count]), (rows[-count:], expected[-count:])]
        for block in (Block(count, transposed=False), Block(count, transposed=True)):
            products = (_product(part, weight, bias, transposed=block.transposed) for part, _ in parts)
            if all(torch.equal(product, right) for product, (_, right) in zip(products, parts, strict=True)):
                found[count] = block
                break
    return found


def cover(rows: int, agreeing: Mapping[int, Block]) -> tuple[Block, ...]:
    """Blocks that cover `rows` rows, the largest first; the last may reach beyond the end.

    Args:
        rows: a positive number.
        agreeing: by row count; not empty.
    """
    if rows in agreeing:  # nearly always: rows come in the counts that were tried
        return (agreeing[rows],)
    blocks = []
    while rows > 0:
        fitting = [count for count in agreeing if count <= rows]
        block = agreeing[max(fitting) if fitting else min(agreeing)]
        blocks.append(block)
        rows -= block.rows
    return tuple(blocks)


class RowInvariantLinear(nn.Linear):
    """A linear layer whose output rows depend on their input row only."""

    agreeing: Mapping[int, Block]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The product, `[..., N]` from `[..., K]`."""
        flat = input.reshape(-1, self.in_features)
        blocks = cover(flat.shape[0], self.agreeing)
        if len(blocks) == 1 and blocks[0].rows == flat.shape[0]:
            output = _product(flat, self.weight, self.bias, transposed=blocks[0].transposed)
        else:
            output = self._in_blocks(flat, blocks)
        return output.view(*input.shape[:-1], self.out_features)

    def _in_blocks(self, flat: torch.Tensor, blocks: tuple[Block, ...]) -> torch.Tensor:
        rows = flat.shape[0]
        padded = torch.cat([flat, flat.new_zeros(sum(block.rows for block in blocks) - rows, flat.shape[1])])
        parts = zip(torch.split(padded, [block.rows for block in blocks]), blocks, strict=True)
        products = [_product(part, self.weight, self.bias, transposed=block.transposed) for part, block in parts]
        return torch.cat(products)[:rows]


class SlicedActivation(nn.Module):
    """An activation that is computed without remainders.

    Args:
        activation: elementwise.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `input`, of which there is a multiple of `STEP_TOKENS`."""
        slices = input.reshape(-1).split(_SLICE)  # type: ignore[no-untyped-call]
        return torch.cat([self.activation(part) for part in slices]).view_as(input)


def has_remainders(activation: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `activation` gives a number other bits where it is left over than in a vector."""
    numbers = torch.linspace(-8, 8, 4096, device=device).to(dtype)
    whole = activation(numbers)
    return not all(torch.equal(activation(numbers[i : i + 1]), whole[i : i + 1]) for i in range(0, 4096, 7))


def make_invariant(model: nn.Module) -> None:
    """Turns every linear layer of `model` into one whose rows do not depend on each other, and activations, in place.

    Raises:
        NotInvariant: naming the shape for which there is no such way.
    """
    known: dict[tuple[object, ...], dict[int, Block]] = {}
    for module in model.modules():
        if type(module) is nn.Linear:
            key = (*module.weight.shape, module.weight.dtype, module.bias is None)
            if key not in known:
                with torch.inference_mode():
                    known[key] = agreeing_blocks(module.weight, module.bias)
            module.__class__ = RowInvariantLinear
            module.agreeing = known[key]  # type: ignore[assignment]
    _slice_activations(model)


def _slice_activations(model: nn.Module) -> None:
    like = next(model.parameters())
    known: dict[type[nn.Module], bool] = {}  # every layer has one of the same type
    for module in list(model.modules()):
        for name in _ACTIVATIONS:
            activation = getattr(module, name, None)
            if not isinstance(activation, nn.Module):
                continue
            if type(activation) not in known:
                known[type(activation)] = has_remainders(activation, like.dtype, like.device)
            if known[type(activation)]:
                setattr(module, name, SlicedActivation(activation))


def _product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, transposed: bool) -> torch.Tensor:
    if not transposed:
        return linear(rows, weight, bias)
    product = linear(weight, rows).t()
    return product.contiguous() if bias is None else product + bias
