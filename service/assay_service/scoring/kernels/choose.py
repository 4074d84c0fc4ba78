"""Choose the back end that computes a base on a device."""

import torch
from transformers import PreTrainedModel

from assay_service.scoring.kernels import build, varlen
from assay_service.scoring.kernels.backend import Backend, Kernels
from assay_service.scoring.kernels.fused import Native
from assay_service.scoring.kernels.torch_segments import TorchSegments


def choose_backend(base: PreTrainedModel, dtype: torch.dtype) -> tuple[Backend, Kernels]:
    """Return the fastest back end whose rows do not depend on each other, and its description.

    Args:
        base: base model on its device, which decides the choice.
        dtype: dtype of the hidden states, which decides it too.
    """
    config = base.config
    head_size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    # The CPU kernels pack pairs of numbers and rotate halves of a head, so an odd head size does not fit them.
    reason = "they need heads of even size" if head_size % 2 else build.load_or_explain(dtype, base.device)
    if reason is None:
        return Native(dtype), Kernels(Native.name)
    # FlashAttention's call in torch has no bound of scores, and to leave it out would give wrong scores.
    bounded = getattr(config, "attn_logit_softcapping", None) is not None
    if not bounded and varlen.is_usable(dtype, base.device, head_size):
        return varlen.Varlen(base.device), Kernels(varlen.Varlen.name)
    if bounded and base.device.type == "cuda":
        reason += ", and FlashAttention does not bound scores (attn_logit_softcapping)"
    return TorchSegments(), Kernels(TorchSegments.name, f"no CPU kernels: {reason}")
