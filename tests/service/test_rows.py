"""Matrix products whose rows do not depend on how many run together."""

from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.activations import ACT2FN

from assay_service.scoring.kernels import row_invariant
from assay_service.scoring.kernels.row_invariant import (
    LARGEST_TOKENS,
    Block,
    NotInvariant,
    cover,
    find_agreeing_blocks,
    make_invariant,
    needs_transposing,
)
from assay_service.scoring.layout import STEP_TOKENS

SHAPES = [(96, 64), (77, 33), (768, 16), (16, 768), (768, 768)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_row_is_the_same_at_every_position_of_every_tile(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    holder = nn.Sequential(nn.Linear(inputs, outputs).to(dtype))
    make_invariant(holder, dtype)
    given = torch.randn(600, inputs).to(dtype)
    with torch.inference_mode():
        together = holder(given)
        for count in (1, 2, 31, 63, 64, 65, 127, 190, 300, 511, 599):
            for start in (0, 1, 600 - count):
                assert torch.equal(holder(given[start : start + count]), together[start : start + count])
        assert torch.equal(holder(given.flip(0)), together.flip(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_product_is_the_product(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 40).to(dtype)
    given = torch.randn(3, 50, 96).to(dtype)
    expected = nn.functional.linear(given.double(), layer.weight.double(), layer.bias.double())
    make_invariant(nn.Sequential(layer), dtype)
    assert layer(given).shape == (3, 50, 40)
    assert torch.allclose(layer(given).double(), expected, atol=1e-5 if dtype == torch.float32 else 2e-2)


def test_counts_that_disagree_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel for fewer than 256 rows that adds in another order: those rows are computed transposed or padded."""
    honest = nn.functional.linear

    def by_count(given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        product = honest(given, weight, bias)
        return product + 1e-3 if given.shape[0] < 256 else product

    monkeypatch.setattr(row_invariant, "linear", by_count)
    wide = find_agreeing_blocks(torch.randn(512, 64), None)
    assert {count: block.transposed for count, block in wide.items() if count < 256} == {64: True, 128: True, 192: True}
    narrow = find_agreeing_blocks(torch.randn(128, 64), torch.randn(128))
    assert min(narrow) == 256


def test_a_product_of_one_size_is_transposed_only_where_its_rows_depend_on_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = nn.functional.linear
    assert needs_transposing(torch.randn(512, 64), 64) is False

    def by_place(given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """A kernel that computes the last row of 64 another way."""
        product = honest(given, weight, bias)
        return product + (torch.arange(64)[:, None] == 63) * 1e-3 if len(given) == 64 else product

    monkeypatch.setattr(row_invariant, "linear", by_place)
    assert needs_transposing(torch.randn(512, 64), 64) is True
    # Transposed, the tokens are the columns of the product.
    monkeypatch.setattr(row_invariant, "linear", lambda given, *rest: honest(given, *rest) + torch.eye(512)[:64, :64])
    with pytest.raises(NotInvariant, match="depend on their position"):
        needs_transposing(torch.randn(64, 64), 64)


def test_rows_that_depend_on_their_position_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_position(given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return nn.functional.linear(given, weight, bias) + torch.arange(given.shape[0])[:, None] % 2

    monkeypatch.setattr(row_invariant, "linear", by_position)
    with pytest.raises(NotInvariant, match=r"\[8, 4\] torch.float32 depend on their position"):
        find_agreeing_blocks(torch.randn(8, 4), None)


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu"])
def test_an_activation_is_the_same_however_many_threads_share_it(name: str, threads: int) -> None:
    """Three threads, 320 wide, 256 rows: shares of 27,307 numbers, which leave some over."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        holder = nn.Module()
        holder.act_fn, holder.weight = ACT2FN[name], nn.Parameter(torch.zeros(1))
        make_invariant(holder, torch.float32)
        numbers = torch.randn(512, 320, generator=torch.Generator().manual_seed(0)) * 3
        activation = cast("nn.Module", holder.act_fn)
        whole = activation(numbers)
        for count in (64, 128, 192, 256, 448):
            assert torch.equal(activation(numbers[:count]), whole[:count])
            assert torch.equal(activation(numbers[-count:]), whole[-count:])
    finally:
        torch.set_num_threads(before)


counts = st.sets(st.sampled_from(range(STEP_TOKENS, LARGEST_TOKENS + 1, STEP_TOKENS)), min_size=1)


@given(st.integers(1, 10_000), counts)
def test_blocks_cover_the_rows_with_counts_that_agree(total: int, agreeing: set[int]) -> None:
    blocks = cover(total, {count: Block(count, transposed=False) for count in agreeing})
    assert {block.rows for block in blocks} <= agreeing
    assert 0 <= sum(block.rows for block in blocks) - total < min(agreeing)
