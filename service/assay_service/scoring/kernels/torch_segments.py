"""Compute attention within each segment of a packed row by torch's operators.

The function is registered with transformers' attention interface.

Transformers builds no mask for an attention function whose name its mask table does not know. So neither padding masks
nor its own detection of packed rows (by jumps in position ids) take effect. Each segment is a call of its own, whose
shape depends on its item only. That is half of why a score does not depend on the batch; `row_invariant.py` is the
other half.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from assay_service.scoring.kernels.backend import check_arguments
from assay_service.scoring.layout import Layout, Segment, Span

NAME = "assay_packed"

# Kernels choose their path by the alignment of addresses, and two paths may round differently.
_CACHE_LINE_BYTES = 64

# Queries whose bounded scores are held in memory at once. It is fixed, so that a segment is always cut in the same way.
_BOUNDED_QUERIES = 512

# Additive masks, keyed by (queries, keys, window); the first layer of a forward pass builds them for all layers.
Masks = dict[tuple[int, int, int | None], torch.Tensor | None]


class TorchSegments:
    """Back end with one call of torch's attention for each segment, and row-invariant linear layers."""

    name = "torch"
    reads_subset = False

    def prepare(self, base: PreTrainedModel) -> None:
        """Make the base's attention layers call `packed_attention`."""
        base.set_attn_implementation(NAME)

    def segments(self, row: Layout) -> tuple[Segment, ...]:
        """Return the segments of a packed row."""
        return row.segments


def packed_attention(  # noqa: PLR0913 - the signature is transformers'
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: tuple[Segment, ...],
    masks: Masks,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **others: Any,  # noqa: ANN401 - further arguments of transformers
) -> tuple[torch.Tensor, None]:
    """Compute scaled dot-product attention, each segment by itself with its prefix.

    Args:
        module: attention layer; its `is_causal` distinguishes decoders from encoders unless the argument does.
        query: queries, `[1, heads, T, head_dim]`.
        key: keys, `[1, kv_heads, T, head_dim]`.
        value: values, in the shape of `key`.
        attention_mask: always None; the segments take its place.
        segments: segments of the row; tokens that they do not cover get zeros.
        masks: masks already built in this forward pass; new ones are added.
        scaling: factor on the dot products; None means `head_dim ** -0.5`.
        dropout: probability of dropout from the layer; 0 in eval mode.
        sliding_window: number of tokens that a token sees, itself included, back from itself; where not causal, as many
            forward. None means all.
        is_causal: whether a token sees only tokens before it and itself; None means the module's own value.
        softcap: bound of the scores (Gemma 2): softcap * tanh(score / softcap). None means unbounded.
        others: further arguments of transformers, which must not change the result.

    Returns:
        The attended values, `[1, T, heads, head_dim]`, and None for the attention weights.

    Raises:
        ValueError: a mask or an unknown argument was passed, or the row is shorter than its segments.
    """
    check_arguments(others)
    if attention_mask is not None:
        raise ValueError("packed attention takes no mask: pass attention_mask=None and the segments of the row")
    rows = query.shape[2]
    if query.shape[0] != 1 or segments[-1].own.end > rows:
        raise ValueError(f"segments up to {segments[-1].own.end} do not lie in the row {tuple(query.shape)}")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mixed = query.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    # Cast once for the whole row, not once for each segment.
    tensors = (tensor.float() if mixed else tensor for tensor in (query, key, value))
    queries, keys, values = (_split_segments(tensor, segments) for tensor in tensors)
    outputs = []
    # In mixed-precision training attention is computed in fp32: on CPUs the gradient takes 1.2 to 5 times as long in
    # bf16.
    with torch.autocast("cpu", enabled=False) if mixed else nullcontext():
        for segment in segments:
            query_piece = _align(queries[segment.own])
            visible = _gather_visible(keys, segment), _gather_visible(values, segment)
            mask = _build_mask(segment, sliding_window, query_piece, masks, causal=causal, bounded=softcap is not None)
            attended = (
                _attend(query_piece, *visible, mask, scaling, dropout, causal=causal)
                if softcap is None
                else _attend_bounded(query_piece, *visible, mask, scaling, softcap)
            )
            outputs.append(attended.transpose(1, 2))
    # A row may be padded to a length that kernels like; no head reads these tokens.
    if (rest := rows - segments[-1].own.end) > 0:
        outputs.append(outputs[0].new_zeros(1, rest, query.shape[1], value.shape[3]))
    return torch.cat(outputs, dim=1), None


def _count_visible(segment: Segment) -> int:
    """Return the number of keys that the segment's last token may see."""
    return segment.own.tokens + (0 if segment.prefix is None else segment.prefix.tokens)


def _split_segments(tensor: torch.Tensor, segments: tuple[Segment, ...]) -> dict[Span, torch.Tensor]:
    """Return the tokens of every segment, by one split.

    Slices would each cost the backward pass a tensor of the whole row.
    """
    lengths = [segment.own.tokens for segment in segments]
    parts = torch.split(tensor, [*lengths, tensor.shape[2] - sum(lengths)], dim=2)
    return {segment.own: part for segment, part in zip(segments, parts, strict=False)}


def _align(part: torch.Tensor) -> torch.Tensor:
    """Return the tensor, copied if its tokens do not begin on cache lines, since a kernel may depend on that."""
    return part if part.stride(2) * part.element_size() % _CACHE_LINE_BYTES == 0 else part.contiguous()


def _gather_visible(pieces: dict[Span, torch.Tensor], segment: Segment) -> torch.Tensor:
    """Return the keys or values that the segment sees: those of its prefix, then its own."""
    if segment.prefix is None:
        return _align(pieces[segment.own])
    # Concatenating with tokens as the slowest dimension copies whole blocks and transposes nothing.
    return torch.cat([pieces[span].transpose(1, 2) for span in (segment.prefix, segment.own)], dim=1).transpose(1, 2)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
    *,
    causal: bool,
) -> torch.Tensor:
    """Return attention by torch's operator, `[1, heads, queries, head_dim]`."""
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal and mask is None,  # torch refuses both at once
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _attend_bounded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Return attention with bounded scores, which torch's operator does not have, `[1, heads, queries, head_dim]`.

    Scores and weights are fp32. The shape depends on the segment only, and so do the bits.
    """
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    # Grouped heads share keys; `matmul` has no such mode.
    group = query.shape[1] // key.shape[1]
    keys, values = (tensor.float().repeat_interleave(group, dim=1) for tensor in (key, value))
    parts = []
    for start in range(0, query.shape[2], _BOUNDED_QUERIES):
        rows = slice(start, start + _BOUNDED_QUERIES)
        scores = torch.matmul(query[:, :, rows].float() * (scale / softcap), keys.transpose(2, 3)).tanh() * softcap
        if mask is not None:
            scores = scores + mask[rows]
        parts.append(torch.matmul(scores.softmax(dim=-1), values))
    return torch.cat(parts, dim=2).to(query.dtype)


def _build_mask(
    segment: Segment,
    sliding_window: int | None,
    like: torch.Tensor,
    masks: Masks,
    *,
    causal: bool,
    bounded: bool,
) -> torch.Tensor | None:
    """Return the additive mask of the segment, `[queries, keys]`; None where it is not needed.

    Args:
        segment: segment of the row.
        sliding_window: window of the layer.
        like: tensor whose dtype and device the mask has.
        masks: masks of this forward pass.
        causal: whether later tokens are hidden. All layers of a base agree.
        bounded: whether the scores are bounded; then even plain causality needs a mask.
    """
    queries, keys = segment.own.tokens, _count_visible(segment)
    window = None if sliding_window is None or sliding_window >= keys else sliding_window
    if window is None and (not causal or (queries == keys and not bounded)):
        return None
    if (queries, keys, window) not in masks:
        ages = torch.arange(keys - queries, keys, device=like.device)[:, None] - torch.arange(keys, device=like.device)
        hidden = torch.zeros_like(ages, dtype=torch.bool) if window is None else ages.abs() >= window
        hidden = hidden | (ages < 0) if causal else hidden
        masks[queries, keys, window] = like.new_zeros(queries, keys).masked_fill_(hidden, float("-inf"))
    return masks[queries, keys, window]


AttentionInterface.register(NAME, packed_attention)
