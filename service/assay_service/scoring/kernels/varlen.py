"""Attention within segments on a GPU: one variable-length call for a row (`torch.nn.attention.varlen`, FlashAttention).

Keys are gathered so that each segment's stand behind its prefix's; a causal segment then sees its prefix and itself, as
FlashAttention aligns queries with the last keys. With one split of the keys its results do not depend on the batch
(`num_splits=1`, torch 2.12 on; before, the proof at start says what holds). FlexAttention is not used: its results
depend on where a segment begins.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

from assay_service.scoring.layout import Layout

NAME = "assay_varlen"

_PARAMETERS = inspect.signature(varlen_attn).parameters
_ONE_SPLIT: Any = {"num_splits": 1} if "num_splits" in _PARAMETERS else {}


@dataclass(frozen=True, slots=True)
class Gathering:
    """Where the queries and keys of the segments of one row lie.

    Attributes:
        keys: int64 `[K]`, tokens of the row in the order in which segments see them.
        query_ends: int32 `[n + 1]`, from 0.
        key_ends: int32 `[n + 1]`, from 0.
        most_queries: of a segment.
        most_keys: of a segment.
    """

    keys: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    most_queries: int
    most_keys: int


class Varlen:
    """Computes attention by FlashAttention's variable-length call, and products by row-invariant layers.

    Args:
        device: a CUDA device.
    """

    name = "varlen"
    reads_subset = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def prepare(self, base: PreTrainedModel) -> None:
        """Make the base's attention layers call `varlen_attention`."""
        base.set_attn_implementation(NAME)

    def segments(self, row: Layout) -> "Gathering":
        """Return the places of queries and keys of a packed row, on the device."""
        return gather(row, self._device)


def usable(dtype: torch.dtype, device: torch.device, head_size: int) -> bool:
    """Whether FlashAttention computes heads of `head_size` in `dtype` on `device`."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and head_size % 8 == 0
        and head_size <= 256
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def gather(row: Layout, device: torch.device) -> Gathering:
    """The gathering of a row; what fills it up is a segment of its own, which nobody reads."""
    seen = [[segment.own] if segment.prefix is None else [segment.prefix, segment.own] for segment in row.segments]
    keys = [token for spans in seen for span in spans for token in range(span.start, span.end)]
    queries = [segment.own.tokens for segment in row.segments]
    counts = [sum(span.tokens for span in spans) for spans in seen]
    if (fill := row.ids.shape[1] - row.tokens) > 0:
        keys += range(row.tokens, row.tokens + fill)
        queries.append(fill)
        counts.append(fill)
    query_ends, key_ends = (
        torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32) for lengths in (queries, counts)
    )
    return Gathering(torch.tensor(keys, device=device), query_ends, key_ends, max(queries), max(counts))


def varlen_attention(  # noqa: PLR0913 - the signature is transformers'
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Gathering,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,  # noqa: ANN401 - what transformers passes to every attention function
) -> tuple[torch.Tensor, None]:
    """As `torch_segments.packed_attention`, by one call; `segments` is `gather`'s."""
    if attention_mask is not None:
        raise ValueError("packed attention takes no mask")
    causal = getattr(module, "is_causal", True)
    # The window counts the token itself, FlashAttention's those before it.
    left = sliding_window - 1 if causal and sliding_window else -1
    keys, values = (tensor[0].transpose(0, 1)[segments.keys] for tensor in (key, value))
    group = query.shape[1] // key.shape[1]
    options = dict(_ONE_SPLIT)
    if "enable_gqa" in _PARAMETERS:
        options["enable_gqa"] = group > 1
    elif group > 1:  # torch 2.11
        keys, values = (tensor.repeat_interleave(group, dim=1) for tensor in (keys, values))
    attended = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        keys,
        values,
        segments.query_ends,
        segments.key_ends,
        segments.most_queries,
        segments.most_keys,
        scale=scaling,
        window_size=(left, 0) if causal else (-1, -1),
        **options,
    )
    return torch.as_tensor(attended)[None], None


AttentionInterface.register(NAME, varlen_attention)
