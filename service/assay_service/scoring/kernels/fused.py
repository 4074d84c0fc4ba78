"""Run the layers of a base on the C++ kernels: products, gated products, norms, and attention with rotary positions.

Each class replaces the layer of transformers that has the same name and parameters, in place. Adapters around a layer
stay around it. Layers that are not listed here keep transformers' code.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from assay_service.scoring.kernels.backend import check_arguments
from assay_service.scoring.kernels.experts import Experts, use_kernels
from assay_service.scoring.kernels.integer_linear import IntegerLinear
from assay_service.scoring.kernels.packed_linear import (
    PackedLinear,
    add_product,
    find_doras,
    pack_integer_linear,
    pack_linear,
    unwrap_idle,
)
from assay_service.scoring.kernels.widen import WidenedLinear
from assay_service.scoring.layout import Layout, Segment

NAME = "assay_native"

# True: round the normed value before multiplying with the weight (Llama). Gemma multiplies with 1 + weight and rounds
# once. A class with another rounding (OLMo 2) is not listed, because its scores would lose their bits.
_RMS_NORMS: Mapping[str, bool] = {
    **dict.fromkeys((f"{name}RMSNorm" for name in ("Llama", "Qwen2", "Qwen3", "Mistral", "Phi3", "Qwen3Moe")), True),
    **dict.fromkeys(("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm"), False),
}
_LAYERS = tuple(f"{name}DecoderLayer" for name in ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma"))
_GELU_OF = {"silu": False, "gelu_pytorch_tanh": True}

# Rows of an MLP that are computed at once. The hidden layer of an MLP is several times as wide as all other tensors.
# Buffers above 32 MiB are requested from the system each time, which costs more than the products gain by more rows.
_MLP_ROWS = 2048

# Numbers in one vector of the kernels; the norm kernel needs a width that is a multiple of this.
_LANES = 16


class _RMSNorm(nn.Module):
    """A root-mean-square norm on the kernels.

    Attributes:
        weight32: weight, fp32 `[H]`.
        epsilon: number that is added to the mean square.
        round_first: whether the normed states are rounded to their dtype before they are multiplied by the weight.
    """

    weight32: torch.Tensor
    epsilon: float
    round_first: bool

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the normed hidden states; both are `[1, T, H]` in the base's dtype."""
        normed: torch.Tensor = torch.ops.assay.rms_norm(hidden_states, self.weight32, self.epsilon, self.round_first)
        return normed


class _GatedMLP(nn.Module):
    """A gated MLP on the kernels, which adds its output to the hidden states in place."""

    gate_proj: Any
    up_proj: Any
    down_proj: Any
    gelu: bool

    def add_to(self, hidden: torch.Tensor, x: torch.Tensor) -> None:
        """Add the output for `x`, `[1, T, H]`, to `hidden` of the same shape and dtype, in place."""
        gate, up = unwrap_idle(self.gate_proj), unwrap_idle(self.up_proj)
        if type(gate) is PackedLinear and type(up) is PackedLinear and gate.bias is None and up.bias is None:
            inner = torch.ops.assay.gated(x, gate.panels, up.panels, self.gelu, gate.out_features)
        else:
            inner = torch.ops.assay.gate(gate(x), up(x), self.gelu)
        add_product(hidden, self.down_proj, inner)


class _Attention(nn.Module):
    """An attention layer on the kernels, without its output projection."""

    q_proj: Any
    k_proj: Any
    v_proj: Any
    q_norm: Any
    k_norm: Any
    head_dim: int
    scaling: float
    window: int

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        segments: torch.Tensor,
    ) -> torch.Tensor:
        """Return the input of `o_proj`: the attended values with heads side by side, `[1, T, heads * head_dim]`.

        Args:
            hidden_states: normed hidden states `[1, T, H]`.
            position_embeddings: cosines and sines of the rotary embedding, each `[1, T, head_dim]`.
            segments: segments of the packed row, int64, as `Native.segments` writes them.
        """
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key = self.q_proj(hidden_states).view(shape), self.k_proj(hidden_states).view(shape)
        value = self.v_proj(hidden_states).view(shape)
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        heads = (tensor.transpose(1, 2) for tensor in (query, key, value))
        attended = torch.ops.assay.attention(*heads, *position_embeddings, segments, self.scaling, self.window, True)
        return torch.as_tensor(attended.flatten(2))


class _DecoderLayer(nn.Module):
    """A decoder layer on the kernels, which adds to the hidden states in place."""

    input_layernorm: Any
    self_attn: Any
    post_attention_layernorm: Any
    mlp: Any
    last: bool

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        segments: torch.Tensor,
        read: torch.Tensor,
        **_: Any,  # noqa: ANN401 - further arguments of transformers
    ) -> torch.Tensor:
        """Return the hidden states after the layer, `[1, T, H]`; after the last one those of the read tokens.

        Args:
            hidden_states: hidden states `[1, T, H]`, which are overwritten.
            position_embeddings: cosines and sines of the rotary embedding, each `[1, T, head_dim]`.
            segments: segments of the packed row, int64.
            read: indices of the tokens that a head reads, int64 `[R]`.
        """
        attended = self.self_attn(self.input_layernorm(hidden_states), position_embeddings, segments)
        if self.last:  # after the last attention no layer looks at the other tokens
            hidden_states, attended = hidden_states[:, read], attended[:, read]
        add_product(hidden_states, self.self_attn.o_proj, attended)
        for part in torch.split(hidden_states, _MLP_ROWS, dim=1):
            self.mlp.add_to(part, self.post_attention_layernorm(part))
        return hidden_states


def native_attention(  # noqa: PLR0913 - the signature is transformers'
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: torch.Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **others: Any,  # noqa: ANN401 - further arguments of transformers
) -> tuple[torch.Tensor, None]:
    """Compute the attention of `torch_segments.packed_attention` by one kernel call.

    Args:
        module: attention layer; this and all others but `segments` are as for `packed_attention`.
        query: queries, `[1, heads, T, head_dim]`.
        key: keys, `[1, kv_heads, T, head_dim]`.
        value: values, in the shape of `key`.
        attention_mask: None.
        segments: table from `build_segment_table`, int64 `[n, 4]`.
        scaling: factor on the dot products.
        sliding_window: window.
        is_causal: causality.
        softcap: bound of the scores.
        others: arguments without effect.

    Raises:
        ValueError: a mask or an unknown argument was passed.
    """
    check_arguments(others)
    if attention_mask is not None:
        raise ValueError("packed attention takes no mask: pass attention_mask=None and the segments of the row")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    attended = torch.ops.assay.attention(
        query, key, value, None, None, segments, scale, sliding_window or 0, causal, softcap or 0.0
    )
    return attended, None


def build_segment_table(segments: tuple[Segment, ...]) -> torch.Tensor:
    """Return segments as the kernel reads them, int64 `[n, 4]`: start and end, then those of the prefix or zeros."""
    rows = [
        (s.own.start, s.own.end, *((0, 0) if s.prefix is None else (s.prefix.start, s.prefix.end))) for s in segments
    ]
    return torch.tensor(rows, dtype=torch.int64)


class Native:
    """Back end on the C++ kernels; the base cannot be trained afterwards.

    Args:
        dtype: dtype of the hidden states.
    """

    name = "assay"

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.reads_subset = False

    def prepare(self, base: PreTrainedModel) -> None:
        """Replace transformers' layers by the layers of this module, in place.

        Afterwards `reads_subset` is true if the last layer computes only the tokens that `read` asks for.
        """
        self.reads_subset = _fuse(base, self._dtype)

    def segments(self, row: Layout) -> torch.Tensor:
        """Return the segments as the kernel reads them, int64 `[n, 4]`."""
        return build_segment_table(row.segments)


def _fuse(base: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Replace the layers that the kernels compute; return whether the last one computes only the tokens to be read."""
    own, around = find_doras(base)
    for module in list(base.modules()):
        name = type(module).__name__
        if type(module) in (nn.Linear, WidenedLinear) and module not in own:
            pack_linear(module, dtype, keep=module in around)
        elif type(module) is IntegerLinear:
            pack_integer_linear(module)
        elif name in _RMS_NORMS and module.weight.numel() % _LANES == 0:
            _fuse_norm(module, round_first=_RMS_NORMS[name])
        elif isinstance(module, Experts) and base.config.hidden_act in _GELU_OF:
            use_kernels(module, gelu=_GELU_OF[base.config.hidden_act])
        elif name in _LAYERS and base.config.hidden_act in _GELU_OF:
            _fuse_layer(module, base.config, last=module is base.layers[-1])
    base.set_attn_implementation(NAME)
    return any(isinstance(module, _DecoderLayer) for module in base.modules())


def _fuse_layer(layer: Any, config: Any, *, last: bool) -> None:  # noqa: ANN401 - five classes of the same structure
    """Turn a decoder layer, its attention and its MLP into those of this module, in place."""
    attention, mlp = layer.self_attn, layer.mlp
    # Mistral has the window in its configuration; in the other classes it may differ from layer to layer.
    holder = config if type(attention).__name__ == "MistralAttention" else attention
    attention.window = getattr(holder, "sliding_window", None) or 0
    mlp.gelu, layer.last = _GELU_OF[config.hidden_act], last
    layer.__class__, attention.__class__, mlp.__class__ = _DecoderLayer, _Attention, _GatedMLP


def _fuse_norm(norm: Any, *, round_first: bool) -> None:  # noqa: ANN401 - five classes with the same parameters
    """Turn a norm into one on the kernels, in place."""
    weight = norm.weight.detach().float()
    norm.register_buffer("weight32", weight if round_first else 1 + weight, persistent=False)
    norm.epsilon, norm.round_first = (norm.variance_epsilon if round_first else norm.eps), round_first
    norm.__class__ = _RMSNorm


AttentionInterface.register(NAME, native_attention)
