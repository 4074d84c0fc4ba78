"""Attention within each sequence of a packed row, registered with transformers' attention interface.

Transformers builds no mask for an attention function whose name its mask table does not know, so neither padding masks
nor its own detection of packed rows (by jumps in position ids) are at work; each segment is a call of its own.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "assay_packed"


def packed_attention(  # noqa: PLR0913 - the signature is transformers'
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segment_lengths: tuple[int, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **unused: Any,  # noqa: ANN401 - what transformers passes to every attention function
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention, each segment by itself.

    Args:
        module: the attention layer; its `is_causal` says decoder or encoder unless the argument does.
        query: `[1, heads, T, head_dim]`.
        key: `[1, kv_heads, T, head_dim]`.
        value: as `key`.
        attention_mask: must be None, segments are the mask.
        segment_lengths: lengths of the sequences in the row; they sum to `T`.
        scaling: factor on the dot products; None means `head_dim ** -0.5`.
        dropout: probability, from the layer; 0 in eval mode.
        is_causal: None means the module's own.
        unused: ignored.

    Returns:
        `[1, T, heads, head_dim]`, and None for the attention weights.

    Raises:
        ValueError: a mask was passed, or the lengths do not sum to `T`.
    """
    if attention_mask is not None:
        raise ValueError("packed attention takes no mask")
    if query.shape[0] != 1 or sum(segment_lengths) != query.shape[2]:
        raise ValueError(f"segments {sum(segment_lengths)} do not cover the row {tuple(query.shape)}")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    outputs = [
        scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=dropout,
            is_causal=causal,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for q, k, v in zip(
            torch.split(query, list(segment_lengths), dim=2),
            torch.split(key, list(segment_lengths), dim=2),
            torch.split(value, list(segment_lengths), dim=2),
            strict=True,
        )
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, packed_attention)
