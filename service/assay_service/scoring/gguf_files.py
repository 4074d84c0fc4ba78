"""Read the tensors of a GGUF file under transformers' names, each as plain values when it is asked for.

llama.cpp stores some tensors changed. The rows of Llama's queries and keys are in another order, and Gemma's norms are
larger by one. Both are undone here, as transformers' own GGUF loader does.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from assay_service.errors import StartError
from assay_service.scoring.checkpoint import HeadTensors
from assay_service.scoring.gguf_header import HEAD, GgufHeader, read_gguf_header
from assay_service.scoring.lazy_tensor import LazyTensor

_OUTPUT, _EMBEDDING = "output.weight", "token_embd.weight"
_HEAD_BIAS = "cls.output.bias"
_LLAMA3_FACTORS = "rope_freqs.weight"
# Tensors that a bare base does not use. The factors of rotary positions are in config.json, too.
_UNUSED = (_OUTPUT, _LLAMA3_FACTORS, "rope_factors_long.weight", "rope_factors_short.weight")

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
class _Layout:
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
_LAYOUTS = {
    "llama": _Layout("llama", _COMMON, permuted=True),
    "mistral": _Layout("llama", _COMMON, permuted=True),
    "qwen2": _Layout("qwen2", _COMMON),
    "qwen3": _Layout("qwen3", _COMMON | _NORMS_OF_HEADS),
    "phi3": _Layout("phi3", _COMMON | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
    "gemma2": _Layout("gemma2", _GEMMA, raised=True),
    "gemma3_text": _Layout("gemma3", _GEMMA | _NORMS_OF_HEADS, raised=True),
}

# Numbers that no tensor's shape shows, by their keys in the metadata and in config.json.
_NUMBERS = {
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_ROPE = {"rope.freq_base": "rope_theta", "rope.scaling.factor": "a rope scaling by"}


def read_gguf_tensors(path: Path, config: PreTrainedConfig) -> dict[str, LazyTensor]:
    """Return the tensors of a base by transformers' names.

    Args:
        path: GGUF file.
        config: configuration of the base.

    Raises:
        StartError: the file is broken, belongs to another model, or has a tensor without a place.
    """
    header = read_gguf_header(path)
    layout = _find_layout(header, config.model_type)
    _check_numbers(header, config)
    named: dict[str, LazyTensor] = {}
    for name in header.tensors:
        if name in _UNUSED or name.startswith("cls."):  # the head, which `read_gguf_head` reads
            continue
        target = _rename(name, layout.modules)
        if target is None:
            raise StartError(f"{path}: tensor {name} has no place in the architecture {config.model_type!r}")
        named[target] = _Stored(header, name, layout, config)
    return named


def read_gguf_head(path: Path) -> HeadTensors | None:
    """Return the head that llama.cpp's rerankers have; None if there is none.

    Raises:
        StartError: the file is broken, or the head has another layer.
    """
    header = read_gguf_header(path)
    others = sorted(name for name in header.tensors if name.startswith("cls.") and name not in (HEAD, _HEAD_BIAS))
    if others:
        raise StartError(f"{path}: {others[0]} belongs to the head; of GGUF files Assay reads {HEAD} alone")
    if HEAD not in header.tensors:
        return None
    weight = torch.from_numpy(_dequantize(header, HEAD))
    bias = torch.from_numpy(_dequantize(header, _HEAD_BIAS)) if _HEAD_BIAS in header.tensors else None
    return HeadTensors(HEAD, weight, bias)


def read_gguf_rows(path: Path, ids: Sequence[int]) -> HeadTensors:
    """Return rows of a language model's output layer; without one of its own, llama.cpp takes the embeddings.

    Args:
        path: GGUF file.
        ids: ids of tokens.

    Raises:
        StartError: the file is broken, or has no such rows.
    """
    header = read_gguf_header(path)
    name, called = (_OUTPUT, "lm_head") if _OUTPUT in header.tensors else (_EMBEDDING, "embed_tokens")
    if name not in header.tensors:
        raise StartError(f"head.tokens: {path} has neither {_OUTPUT} nor {_EMBEDDING}")
    if max(ids) >= header.tensors[name].shape[0]:
        raise StartError(f"head.tokens: {name} has no row {max(ids)}; check the tokenizer of the checkpoint")
    return HeadTensors(f"{called}.weight{list(ids)}", torch.from_numpy(_dequantize(header, name, ids)), None)


class _Stored(LazyTensor):
    """A tensor of a GGUF file, as transformers has it."""

    def __init__(self, header: GgufHeader, name: str, layout: _Layout, config: PreTrainedConfig) -> None:
        self.shape = header.tensors[name].shape
        self._header, self._name, self._layout = header, name, layout
        self._heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}

    def read(self) -> torch.Tensor:
        """Return the values in fp32.

        Raises:
            StartError: a value is not a finite number.
        """
        values = _dequantize(self._header, self._name)
        if not np.isfinite(values).all():
            raise StartError(
                f"{self._header.path}: {self._name} has values that are not finite numbers; download the file again"
            )
        module = self._name.split(".")[-2]
        if self._layout.raised and module.endswith("norm"):
            values = values - np.float32(1)
        if self._layout.permuted and module in self._heads:
            values = _restore_order(values, self._heads[module])
        return torch.from_numpy(np.ascontiguousarray(values))


def _find_layout(header: GgufHeader, model_type: str) -> _Layout:
    """Return how llama.cpp stores the architecture of `config.json`.

    Raises:
        StartError: the architecture is not read from GGUF files, or the file has another one.
    """
    layout = _LAYOUTS.get(model_type)
    if layout is None:
        raise StartError(
            f"{header.path}: architecture {model_type!r} of config.json is not read from GGUF files; Assay reads "
            f"{', '.join(sorted(_LAYOUTS))}"
        )
    if header.architecture != layout.name:
        raise StartError(
            f"{header.path}: general.architecture is {header.architecture!r}, but config.json has {model_type!r}, "
            f"which llama.cpp calls {layout.name!r}; use the config.json of the model that the file was made from"
        )
    return layout


def _check_numbers(header: GgufHeader, config: PreTrainedConfig) -> None:
    """Refuse a `config.json` of another model, as far as no shape of a tensor shows it."""
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    expected = {key: getattr(config, name, None) for key, name in _NUMBERS.items()}
    if "rope_theta" in rope:  # the layers of Gemma 3 differ, so that it has two mappings here
        expected |= {"rope.freq_base": rope["rope_theta"], "rope.scaling.factor": rope.get("factor", 1.0)}
    for key, number in expected.items():
        stored = header.get_number(key)
        # llama.cpp stores fp32.
        if stored is not None and number is not None and not math.isclose(stored, number, rel_tol=1e-6):
            raise StartError(
                f"{header.path}: {header.architecture}.{key} is {stored:g}, but config.json has "
                f"{_NUMBERS.get(key) or _ROPE[key]} {number:g}; use the config.json of the model that the file was "
                "made from"
            )
    if _LLAMA3_FACTORS in header.tensors and rope.get("rope_type") != "llama3":
        raise StartError(
            f"{header.path}: {_LLAMA3_FACTORS} scales rotary positions, but config.json has no scaling of type "
            "'llama3'; use the config.json of the model that the file was made from"
        )


def _rename(name: str, modules: Mapping[str, str]) -> str | None:
    """Return transformers' name of a tensor; None if it has none."""
    whole = {_EMBEDDING: "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    if name in whole:
        return whole[name]
    match = _BLOCK.match(name)
    if match is None or match[2] not in modules:
        return None
    return f"layers.{match[1]}.{modules[match[2]]}.{match[3]}"


def _restore_order(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return rows in transformers' order: the two halves of each head, not pairs of a row from each half."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _dequantize(header: GgufHeader, name: str, rows: Iterable[int] | None = None) -> NDArray[np.float32]:
    """Return the values of a tensor, or of some of its rows, in fp32.

    Raises:
        StartError: the gguf package is not installed.
    """
    try:
        from gguf import GGMLQuantizationType  # noqa: PLC0415 - only where a GGUF file is declared
        from gguf.quants import dequantize  # noqa: PLC0415
    except ImportError as error:
        raise StartError("gguf_file: needs the gguf package; install it by `pip install gguf`") from error
    tensor = header.tensors[name]
    stored = np.memmap(header.path, np.uint8, "r", tensor.start, (tensor.size,))
    blocks = stored.reshape(*tensor.shape[:-1], -1)
    chosen = blocks if rows is None else blocks[list(rows)]
    # A copy, because values of plain types are a view of the bytes, and the file must not be written to.
    with np.errstate(all="ignore"):  # the caller refuses values that are not finite
        values = dequantize(np.array(chosen), GGMLQuantizationType(tensor.kind))
    return np.asarray(values, np.float32)
