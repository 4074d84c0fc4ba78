"""Write tiny GGUF files as llama.cpp's converter does, by the gguf package."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}


def write(path: Path, model: Any, kind: str = "F32", head: np.ndarray | None = None, **changes: Any) -> dict[str, Any]:
    """Writes the base of `model`; returns the state dict that these rounded weights are, under transformers' names."""
    config = model.config
    name = ARCHITECTURES[config.model_type]
    names = gguf.get_tensor_name_map(
        next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name), config.num_hidden_layers
    )
    writer = gguf.GGUFWriter(path, changes.pop("named", name))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(changes.pop("head_count", config.num_attention_heads))
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(changes.pop("epsilon", config.rms_norm_eps))
    writer.add_token_list(changes.pop("tokens", [f"t{number}" for number in range(config.vocab_size)]))
    changes.pop("describe", lambda _: None)(writer)  # more metadata
    if "rope_theta" in (config.rope_parameters or {}):
        writer.add_rope_freq_base(changes.pop("rope_theta", config.rope_parameters["rope_theta"]))
    if factor := changes.pop("factor", None):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(factor)
    rounded: dict[str, Any] = {}
    for key, tensor in model.base_model.state_dict().items():
        stem, _, part = key.rpartition(".")
        target = names.get_name(f"model.{stem}")
        assert target is not None, key
        rounded[key] = _add(writer, f"{target}.{part}", tensor.float().numpy(), name, config, kind)
    if head is not None:
        writer.add_tensor("cls.output.weight", head)
    for extra, tensor in changes.pop("extra", {}).items():
        writer.add_tensor(extra, tensor)
    assert not changes, changes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return rounded


def write_blocks(path: Path, name: str, blocks: np.ndarray, kind: int) -> None:
    """Writes a file with one tensor of blocks, uint8 `[rows, bytes]`."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: Any, target: str, values: np.ndarray, name: str, config: Any, kind: str) -> torch.Tensor:
    """Writes one tensor; returns its rounded values in transformers' own form."""
    stored = values
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(target.split(".")[-2])
    if name == "llama" and heads:  # LlamaModel.permute of convert_hf_to_gguf.py
        stored = stored.reshape(heads, 2, -1, *stored.shape[1:]).swapaxes(1, 2).reshape(stored.shape)
    if name.startswith("gemma") and target.endswith("norm.weight"):
        stored = stored + 1
    if kind == "F32" or stored.ndim == 1:
        writer.add_tensor(target, np.ascontiguousarray(stored))
        return torch.from_numpy(values.copy())
    quant = getattr(gguf.GGMLQuantizationType, kind)
    blocks = gguf.quants.quantize(np.ascontiguousarray(stored), quant)
    writer.add_tensor(target, blocks, raw_dtype=quant)
    back = gguf.quants.dequantize(blocks, quant)
    if name == "llama" and heads:
        back = back.reshape(heads, -1, 2, *back.shape[1:]).swapaxes(1, 2).reshape(back.shape)
    return torch.from_numpy(np.ascontiguousarray(back))
