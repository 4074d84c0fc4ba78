"""Read the tensors of a GGUF file under transformers' names, each as plain values when it is asked for."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from assay_service.errors import StartError
from assay_service.scoring.checkpoint import HeadTensors
from assay_service.scoring.gguf_header import HEAD, GgufHeader, read_gguf_header
from assay_service.scoring.gguf_values import EMBEDDING, LAYOUTS, OUTPUT, Layout, dequantize, read_tensor, rename
from assay_service.scoring.lazy_tensor import LazyTensor

_HEAD_BIAS = "cls.output.bias"
_LLAMA3_FACTORS = "rope_freqs.weight"
# Tensors that a bare base does not use. The factors of rotary positions are in config.json, too.
_UNUSED = (OUTPUT, _LLAMA3_FACTORS, "rope_factors_long.weight", "rope_factors_short.weight")

# Numbers that no tensor's shape shows, by their keys in the metadata and in config.json.
_NUMBERS = {
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_ROPE = {"rope.freq_base": "rope_theta", "rope.scaling.factor": "a rope scaling by"}


def read_gguf_tensors(path: Path, config: PreTrainedConfig) -> dict[str, LazyTensor]:
    """Return the tensors of a base by transformers' names, in the shapes of transformers' model.

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
        target = rename(name, layout.modules)
        if target is None:
            raise StartError(
                f"{path}: tensor {name} has no place in the architecture {config.model_type!r}; use the safetensors "
                "files of the model"
            )
        named[target] = _Stored(header, name, layout, config)
    return named


def read_gguf_head(path: Path) -> HeadTensors | None:
    """Return the head that llama.cpp's rerankers have; None if there is none.

    Its weight is fp32 `[K, H]` with K outputs, and its bias fp32 `[K]`.

    Raises:
        StartError: the file is broken, or the head has another layer.
    """
    header = read_gguf_header(path)
    others = sorted(name for name in header.tensors if name.startswith("cls.") and name not in (HEAD, _HEAD_BIAS))
    if others:
        raise StartError(
            f"{path}: {others[0]} belongs to the head, but of GGUF files Assay reads {HEAD} alone; use the safetensors "
            "files of the model"
        )
    if HEAD not in header.tensors:
        return None
    weight = torch.from_numpy(dequantize(header, HEAD))
    bias = torch.from_numpy(dequantize(header, _HEAD_BIAS)) if _HEAD_BIAS in header.tensors else None
    return HeadTensors(HEAD, weight, bias)


def read_gguf_rows(path: Path, key: str, ids: Sequence[int] | None) -> HeadTensors:
    """Return rows of a language model's output layer as a head, fp32 `[N, H]`, one row for each of N ids.

    Without an output layer of its own, llama.cpp takes the embeddings.

    Args:
        path: GGUF file.
        key: name of the declared key, for errors.
        ids: ids of tokens; None reads the rows of all tokens.

    Raises:
        StartError: the file is broken, or has no such rows.
    """
    header = read_gguf_header(path)
    name, called = (OUTPUT, "lm_head") if OUTPUT in header.tensors else (EMBEDDING, "embed_tokens")
    if name not in header.tensors:
        raise StartError(f"{key}: {path} has neither {OUTPUT} nor {EMBEDDING}; convert the model again")
    if ids is not None and max(ids) >= header.tensors[name].shape[0]:
        raise StartError(f"{key}: {name} has no row {max(ids)}; check the tokenizer of the checkpoint")
    return HeadTensors(
        f"{called}.weight{'' if ids is None else list(ids)}", torch.from_numpy(dequantize(header, name, ids)), None
    )


class _Stored(LazyTensor):
    """A tensor of a GGUF file, as transformers has it."""

    def __init__(self, header: GgufHeader, name: str, layout: Layout, config: PreTrainedConfig) -> None:
        self.shape = header.tensors[name].shape
        self._header, self._name, self._layout = header, name, layout
        self._heads = config.num_attention_heads, config.num_key_value_heads

    def read(self) -> torch.Tensor:
        """Return the values in fp32, in the shape of transformers' tensor.

        Raises:
            StartError: a value is not a finite number.
        """
        return torch.from_numpy(read_tensor(self._header, self._name, self._layout, *self._heads))


def _find_layout(header: GgufHeader, model_type: str) -> Layout:
    """Return how llama.cpp stores the architecture of `config.json`.

    Raises:
        StartError: the architecture is not read from GGUF files, or the file has another one.
    """
    layout = LAYOUTS.get(model_type)
    if layout is None:
        raise StartError(
            f"{header.path}: architecture {model_type!r} of config.json is not read from GGUF files, but only "
            f"{', '.join(sorted(LAYOUTS))}; use the safetensors files of the model"
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
