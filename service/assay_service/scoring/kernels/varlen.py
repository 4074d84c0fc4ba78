"""Compute attention within segments on a GPU by one variable-length call for a row (FlashAttention).

The call is `torch.nn.attention.varlen`. Keys are gathered so that the keys of each segment stand behind those of its
prefix. FlashAttention aligns queries with the last keys, so a causal segment then sees its prefix and itself.

With one split of the keys the results do not depend on the batch (`num_splits=1`, from torch 2.12). For older versions
the invariance check at start decides. FlexAttention is not used, because its results depend on where a segment begins.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

from assay_service.scoring.kernels.backend import check_arguments
from assay_service.scoring.layout import Layout

NAME = "assay_varlen"

_PARAMETERS = inspect.signature(varlen_attn).parameters
# With several splits the order of summation would depend on how many blocks the whole batch has.
_ONE_SPLIT: Any = {"num_splits": 1} if "num_splits" in _PARAMETERS else {}


@dataclass(frozen=True, slots=True)
class Gathering:
    """Positions of the queries and keys of all segments of one row.

    Attributes:
        keys: row positions of the keys in the order in which segments see them, int64 `[K]`.
        query_ends: cumulative number of queries, starting with 0, int32 `[n + 1]`.
        key_ends: cumulative number of keys, starting with 0, int32 `[n + 1]`.
        most_queries: largest number of queries of a segment.
        most_keys: largest number of keys of a segment.
    """

    keys: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    most_queries: int
    most_keys: int


class Varlen:
    """Back end with FlashAttention's variable-length attention and row-invariant linear layers.

    Args:
        device: CUDA device.
    """

    name = "varlen"
    reads_subset = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def prepare(self, base: PreTrainedModel) -> None:
        """Make the base's attention layers call `varlen_attention`."""
        base.set_attn_implementation(NAME)

    def segments(self, row: Layout) -> "Gathering":
        """Return the positions of the queries and keys of a packed row, on the device."""
        return gather(row, self._device)


def is_usable(dtype: torch.dtype, device: torch.device, head_size: int) -> bool:
    """Return whether FlashAttention computes heads of `head_size` in `dtype` on `device`."""
    # FlashAttention's own limits: half precision, head sizes up to 256 in steps of 8, and Ampere or newer.
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and head_size % 8 == 0
        and head_size <= 256
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def gather(row: Layout, device: torch.device) -> Gathering:
    """Build the `Gathering` of a row; the padding at its end becomes a segment whose output nobody reads."""
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
    is_causal: bool | None = None,
    **others: Any,  # noqa: ANN401 - further arguments of transformers
) -> tuple[torch.Tensor, None]:
    """Compute the attention of `torch_segments.packed_attention` by one call.

    Args:
        module: attention layer; its `is_causal` distinguishes decoders from encoders unless the argument does.
        query: queries, `[1, heads, T, head_dim]`.
        key: keys, `[1, kv_heads, T, head_dim]`.
        value: values, in the shape of `key`.
        attention_mask: always None; the segments take its place.
        segments: positions of queries and keys, from `gather`.
        scaling: factor on the dot products; None means `head_dim ** -0.5`.
        sliding_window: number of tokens that a token sees, as for `packed_attention`; None means all.
        is_causal: whether a token sees only tokens before it and itself; None means the module's own value.
        others: further arguments of transformers, which must not change the result; a `softcap` is refused.

    Returns:
        The attended values, `[1, T, heads, head_dim]`, and None for the attention weights.

    Raises:
        ValueError: a mask or an unknown argument was passed.
    """
    check_arguments(others)
    if attention_mask is not None:
        raise ValueError("packed attention takes no mask: pass attention_mask=None and the segments of the row")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    # The window of transformers counts the token itself; FlashAttention's counts only the tokens beside it.
    reach = sliding_window - 1 if sliding_window else -1
    keys, values = (tensor[0].transpose(0, 1)[segments.keys] for tensor in (key, value))
    group = query.shape[1] // key.shape[1]
    options = dict(_ONE_SPLIT)
    if "enable_gqa" in _PARAMETERS:
        options["enable_gqa"] = group > 1
    elif group > 1:  # torch 2.11 has no grouped-query attention here
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
        window_size=(reach, 0 if causal else reach),
        **options,
    )
    return torch.as_tensor(attended)[None], None


AttentionInterface.register(NAME, varlen_attention)
