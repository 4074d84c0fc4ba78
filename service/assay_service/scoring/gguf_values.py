"""Read the values of GGUF files as transformers has them. Needs numpy and the gguf package, but not torch.

llama.cpp stores some tensors changed. The rows of Llama's queries and keys are in another order, and Gemma's norms are
larger by one. Both are undone here, as transformers' own GGUF loader does.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from assay_service.errors import StartError
from assay_service.scoring.gguf_header import GgufHeader

OUTPUT, EMBEDDING = "output.weight", "token_embd.weight"

_BLOCK = re.compile(r"^blk\.(\d+)\.(\w+)\.(weight|bias)$")
_COMMON = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS_OF_HEADS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA = _COMMON | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """How llama.cpp stores an architecture.

    Attributes:
        name: llama.cpp's name of the architecture.
        modules: name of each module of a layer in transformers, by its name in llama.cpp.
        permuted: whether the rows of queries and keys are in another order.
        raised: whether norms are larger by one.
    """

    name: str
    modules: Mapping[str, str]
    permuted: bool = False
    raised: bool = False


# By transformers' model type; llama.cpp stores Mistral as a Llama.
LAYOUTS = {
    "llama": Layout("llama", _COMMON, permuted=True),
    "mistral": Layout("llama", _COMMON, permuted=True),
    "qwen2": Layout("qwen2", _COMMON),
    "qwen3": Layout("qwen3", _COMMON | _NORMS_OF_HEADS),
    "phi3": Layout("phi3", _COMMON | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
    "gemma2": Layout("gemma2", _GEMMA, raised=True),
    "gemma3_text": Layout("gemma3", _GEMMA | _NORMS_OF_HEADS, raised=True),
}


def rename(name: str, modules: Mapping[str, str]) -> str | None:
    """Return transformers' name of a tensor in the bare model; None if it has none.

    Args:
        name: name in the GGUF file.
        modules: names of a layer's modules, as a `Layout` has them.
    """
    whole = {EMBEDDING: "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    if name in whole:
        return whole[name]
    match = _BLOCK.match(name)
    if match is None or match[2] not in modules:
        return None
    return f"layers.{match[1]}.{modules[match[2]]}.{match[3]}"


def read_tensor(header: GgufHeader, name: str, layout: Layout, heads: int, key_value_heads: int) -> NDArray[np.float32]:
    """Return a tensor of a base in fp32, contiguous, with llama.cpp's changes undone.

    Its shape is the one in the header: `[M, N]` of a matrix, `[H]` of a norm.

    Args:
        header: header of the file.
        name: name of the tensor in the file.
        layout: form in which llama.cpp stores the architecture.
        heads: number of attention heads.
        key_value_heads: number of heads of keys and values.

    Raises:
        StartError: the gguf package is not installed, or a value is not a finite number.
    """
    values = dequantize(header, name)
    if not np.isfinite(values).all():
        raise StartError(f"{header.path}: {name} has values that are not finite numbers; download the file again")
    module = name.split(".")[-2]
    permuted = {"attn_q": heads, "attn_k": key_value_heads} if layout.permuted else {}
    if layout.raised and module.endswith("norm"):
        values = values - np.float32(1)
    if module in permuted:
        values = _restore_order(values, permuted[module])
    return np.ascontiguousarray(values)


def dequantize(header: GgufHeader, name: str, rows: Iterable[int] | None = None) -> NDArray[np.float32]:
    """Return the stored values of a tensor `[M, N]`, or of some of its rows, `[len(rows), N]`, in fp32.

    Args:
        header: header of the file.
        name: name of the tensor in the file.
        rows: numbers of the rows; None for all.

    Raises:
        StartError: the gguf package is not installed.
    """
    try:
        import gguf.quants  # noqa: PLC0415 - only where there is a GGUF file
    except ImportError as error:
        raise StartError(
            f"{header.path.name}: GGUF files need the gguf package; install it by `pip install gguf`"
        ) from error
    tensor = header.tensors[name]
    stored = np.memmap(header.path, np.uint8, "r", tensor.start, (tensor.size,))
    blocks = stored.reshape(*tensor.shape[:-1], -1)
    chosen = blocks if rows is None else blocks[list(rows)]
    # A copy, because values of plain types are a view of the bytes, and the file must not be written to.
    with np.errstate(all="ignore"):  # the caller refuses values that are not finite
        values = gguf.quants.dequantize(np.array(chosen), gguf.GGMLQuantizationType(tensor.kind))
    return np.asarray(values, np.float32)


def _restore_order(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return rows in transformers' order: the two halves of each head, not pairs of a row from each half.

    Both arrays are fp32 `[heads * head_dim, N]`.
    """
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)
