"""Let a base of half-precision weights compute in fp32, without a second copy of its matrices in memory.

The embedding of tokens and the weights of linear layers are nearly all of a base's memory. They stay as they are, and
are widened where they are used: a row when it is looked up, a panel of a matrix when it is multiplied. Every other
tensor becomes fp32, and so do other embeddings, whose weights a model may read as a whole (DeBERTa). Widening is exact,
so the result is that of an fp32 base whose weights have the same values.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

_NARROW = (torch.bfloat16, torch.float16)


class WidenedLinear(nn.Linear):
    """A linear layer whose weight is widened to the dtype of its input at every call."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the product, `[..., N]` from `[..., K]`, in the dtype of the input."""
        return linear(input, self.weight.to(input.dtype), self.bias)


class WidenedEmbedding(nn.Embedding):
    """An embedding whose rows are widened to fp32 when they are looked up."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the rows of token ids, fp32 `[..., H]`."""
        rows = super().forward(input).float()
        scale = getattr(self, "embed_scale", None)  # Gemma's embedding multiplies its rows by a factor
        return rows if scale is None else rows * scale


def widen(base: PreTrainedModel) -> None:
    """Let `base` compute in fp32, in place; weights that are fp32 already stay as they are."""
    tokens = base.get_input_embeddings()
    tokens = getattr(tokens, "base_layer", tokens)  # LoRA may be around it
    kept: set[int] = set()
    for module in base.modules():
        layer: Any = module
        if type(layer) is nn.Linear and layer.weight.dtype in _NARROW:
            layer.__class__ = WidenedLinear
            kept.add(id(layer.weight))
        elif layer is tokens and _is_lookup(layer) and layer.weight.dtype in _NARROW:
            layer.__class__ = WidenedEmbedding
            kept.add(id(layer.weight))
    for parameter in base.parameters():
        if id(parameter) not in kept and parameter.dtype in _NARROW:
            parameter.data = parameter.data.float()
    for module in base.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dtype in _NARROW:
                setattr(module, name, buffer.float())
        if isinstance(module, WidenedEmbedding) and _is_scaled(module):
            module.embed_scale = torch.tensor(module.scalar_embed_scale)  # its buffer was rounded to the base's dtype


def _is_lookup(module: nn.Module) -> bool:
    """Return whether a module is a plain embedding, or one that only multiplies its rows by a known factor."""
    return type(module) is nn.Embedding or (isinstance(module, nn.Embedding) and _is_scaled(module))


def _is_scaled(embedding: nn.Module) -> bool:
    return hasattr(embedding, "scalar_embed_scale")
