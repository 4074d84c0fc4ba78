"""Read tensors from safetensors files, find heads by their names, and hash the tensors that were read.

No code of a checkpoint is ever executed, and no pickle is read (CVE-2025-32434). Heads are read by `pread` and not
mapped, so that a file that changes later does not change them (scoring-traps 29).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from assay_service.errors import StartError
from assay_service.scoring.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    explain_pickled,
    find_value_head_files,
    read_config,
)
from assay_service.scoring.missing_head import explain_several
from assay_service.scoring.names import build_head_weight_pattern, check_whole_head, unwrap_name

# Keys of a PEFT model's raw `state_dict`: those with the adapter's name in them, and those of the untouched originals.
_NAMED = re.compile(
    r"^(.+\.(?:lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|trainable_tokens_delta))"
    r"\.(?!(?:weight|bias)$)(\w+)((?:\.weight|\.bias)?)$"
)
_MODULE_TO_SAVE = re.compile(r"\.modules_to_save\.(\w+)(?=\.)")
_ORIGINAL = re.compile(r"\.original_module\.|\.trainable_tokens_original\.")


@dataclass(frozen=True, slots=True)
class DenseTensors:
    """The layer between hidden state and head of a classifier as files store it.

    Attributes:
        weight: weight, `[H, H]`.
        bias: bias, `[H]`, or None.
        norm: weight, `[H]`, and bias, `[H]` or None, of the norm after the activation; None if there is none.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    norm: tuple[torch.Tensor, torch.Tensor | None] | None = None

    @property
    def named(self) -> dict[str, torch.Tensor]:
        """Return the tensors that there are by name."""
        norm = self.norm or (None, None)
        named = {"dense.weight": self.weight, "dense.bias": self.bias, "norm.weight": norm[0], "norm.bias": norm[1]}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True, slots=True)
class HeadTensors:
    """A head as a file stores it.

    Attributes:
        name: name of the weight in the file.
        weight: weight, `[K, H]`, for `K` outputs; `[K, D]` behind a layer with `D` outputs.
        bias: bias, `[K]`, or None.
        dense: layer before it, if there is one that is read.
        activation: name of the activation between them in transformers.
        epsilon: epsilon of the norm of that layer.
    """

    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    dense: DenseTensors | None = None
    activation: str = "relu"
    epsilon: float = 1e-5

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the values, independent of the file that holds them."""
        tensors = {"weight": self.weight, **({} if self.bias is None else {"bias": self.bias})}
        tensors |= {} if self.dense is None else self.dense.named
        return hash_tensors(tensors)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter in PEFT's format.

    Attributes:
        directory: directory from which it was read.
        config: parsed `adapter_config.json`.
        tensors: tensors without the head, keyed by the name that PEFT saves them under.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the tensors and of the settings that change their effect."""
        scale = {
            k: self.config.get(k)
            for k in ("r", "fan_in_fan_out", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
        }
        if indices := self.config.get("trainable_token_indices"):
            scale["trainable_token_indices"] = indices
        return hashlib.sha256((hash_tensors(self.tensors) + json.dumps(scale, sort_keys=True)).encode()).hexdigest()


def read_head(files: Iterable[Path], extra_head: str | None = None) -> HeadTensors | None:
    """Return the head in `files`, or None if they contain none.

    Args:
        files: safetensors files.
        extra_head: name of a further head module, from `value_head_prefix` in `config.json`.

    Raises:
        StartError: there are several heads, or a head has more tensors than are read; the message names them.
    """
    found: list[str] = []
    present: dict[str, Path] = {}
    pattern = build_head_weight_pattern(extra_head)
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            names = sorted(tensors.keys())
        present |= dict.fromkeys(names, path)
        found += [name for name in names if pattern.match(unwrap_name(name))]
    if len(found) > 1:
        raise StartError(explain_several(found))
    if not found:
        return None
    (name,) = found
    check_whole_head(name, present, present[name], extra_head)
    bias = name.removesuffix("weight") + "bias"
    own = _read_tensor(present, bias) if bias in present else None
    return HeadTensors(name, _read_tensor(present, name), own, _read_first_layer(present, name))


def _read_tensor(present: Mapping[str, Path], name: str) -> torch.Tensor:
    """Return a tensor in the shape and dtype of its file; the tensors of one head may lie in different shards."""
    with safe_open(present[name], framework="pt", backend="pread") as tensors:
        tensor: torch.Tensor = tensors.get_tensor(name)
    check_plain(name, tensor)
    return tensor


def check_plain(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor of a head that is quantized; without its scales it would be another head.

    Args:
        name: name of the tensor, for the error.
        tensor: tensor of any shape; plain weights are fp16, bf16, fp32 or fp64.

    Raises:
        StartError: its dtype is not one of plain weights.
    """
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise StartError(
            f"{name}: is stored as {str(tensor.dtype).removeprefix('torch.')}, but a head is read only from plain "
            "weights; save the checkpoint with this layer not quantized"
        )


def _read_first_layer(present: Mapping[str, Path], name: str) -> DenseTensors | None:
    """Return the first layer of a head `[Linear, ReLU, Linear]`, or None if the head has one layer.

    Args:
        present: file of each tensor by its name.
        name: name of the weight of the last layer; `….2.weight` in a head of two layers.

    Raises:
        StartError: the first layer is not there whole.
    """
    if not name.endswith(".2.weight"):
        return None
    first = name.removesuffix("2.weight") + "0."
    missing = [part for part in (f"{first}weight", f"{first}bias") if part not in present]
    if missing:
        raise StartError(
            f"{name}: is the last of two layers, but the checkpoint has no {missing[0]}; save it with its whole head"
        )
    return DenseTensors(_read_tensor(present, f"{first}weight"), _read_tensor(present, f"{first}bias"))


def read_dense(files: Sequence[Path], module: str, norm: str | None = None) -> DenseTensors | None:
    """Return the layer before a classifier's head, in the dtypes of the files; None if the files lack its tensors.

    Args:
        files: safetensors files; the first file that has a layer is used.
        module: name of the layer in transformers.
        norm: name of the norm after it in transformers; None if the architecture has none.
    """
    dense = _read_layer(files, module)
    after = None if norm is None else _read_layer(files, norm)
    if dense is None or (norm is not None and after is None):
        return None
    return DenseTensors(*dense, after)


def _read_layer(files: Iterable[Path], module: str) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Return the weight and the bias, or None for it, of a layer outside of the base; None if no file has it."""
    name = re.compile(rf"^(?:base_model\.model\.)?(?:\w+\.)?{re.escape(module)}(?:\.modules_to_save\.\w+)?\.weight$")
    for path in files:
        with safe_open(path, framework="pt", backend="pread") as tensors:
            keys = set(tensors.keys())
            for weight in sorted(key for key in keys if name.match(unwrap_name(key))):
                bias = weight.removesuffix("weight") + "bias"
                check_plain(weight, read := tensors.get_tensor(weight))
                return read, tensors.get_tensor(bias) if bias in keys else None
    return None


def read_adapter(directory: Path) -> tuple[Adapter, HeadTensors | None]:
    """Read a PEFT LoRA adapter, and the head saved with it (`modules_to_save`) if there is one.

    Raises:
        StartError: it is not a LoRA adapter, asks for remote code, or every `lora_B` is zero (never trained).
    """
    config = read_config(directory, ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise StartError(
            f"{directory}: peft_type is {config.get('peft_type')!r}, but only LORA adapters are served; merge it into "
            "its base and declare that as `base`"
        )
    path = directory / ADAPTER_WEIGHTS
    if not path.is_file():
        instead = explain_pickled(directory, ADAPTER_WEIGHTS) or "; download or save the adapter again"
        raise StartError(f"{directory}: has no {ADAPTER_WEIGHTS}{instead}")
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    head = read_head([path, *find_value_head_files(directory)])
    tensors = _rename_as_saved_by_peft(tensors, path)
    if head is not None:
        name = _MODULE_TO_SAVE.sub("", head.name)
        beside = name.removesuffix(".weight").removesuffix(".out_proj")  # for RoBERTa this includes the dense layer
        tensors = {n: t for n, t in tensors.items() if not n.startswith(f"{beside}.")}
    # Training starts with one factor at zero, so that the adapter changes nothing; MiCA starts with the other one.
    zero = "lora_A" if config.get("init_lora_weights") == "mica" else "lora_B"
    outputs = [tensor for name, tensor in tensors.items() if zero in name or "lora_embedding_A" in name]
    if not any(bool(torch.count_nonzero(tensor)) for tensor in outputs):
        raise StartError(f"{path}: every {zero} is zero; the adapter was never trained: declare a trained one")
    return Adapter(directory, config, tensors), head


def hash_adapters(adapters: Sequence[Adapter]) -> str | None:
    """Return the SHA-256 of adapters in this order; for a single adapter, its own; None if there are none."""
    digests = [adapter.sha256 for adapter in adapters]
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _rename_as_saved_by_peft(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a model's raw `state_dict` under the names of `save_pretrained`.

    A raw `state_dict` has the adapter's name in every key, and the untouched original beside a head or embedding.

    Raises:
        StartError: it holds several adapters.
    """
    names = {match[2] for name in tensors if (match := _NAMED.match(name))}
    names |= {match[1] for name in tensors if (match := _MODULE_TO_SAVE.search(name))}
    if len(names) > 1:
        raise StartError(f"{path}: holds several adapters ({', '.join(sorted(names))}); save only the one to be served")
    kept = {name: tensor for name, tensor in tensors.items() if not _ORIGINAL.search(name)}
    return {_MODULE_TO_SAVE.sub("", _NAMED.sub(_remove_adapter_name, name)): tensor for name, tensor in kept.items()}


def _remove_adapter_name(match: re.Match[str]) -> str:
    """Return a tensor's name without that of the adapter."""
    return match[1] if match[1].endswith("lora_magnitude_vector") else match[1] + match[3]


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        # With dtype and shape, because equal bytes can be different tensors.
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # The bytes are not copied: the output layer of a language model has gigabytes.
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
