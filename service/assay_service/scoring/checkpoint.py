"""Read tensors from files: safetensors only, heads found by name, and SHA-256 of what was read.

Nothing here executes what a checkpoint brings: no pickles (CVE-2025-32434).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from assay_service.errors import StartError
from assay_service.scoring.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_config, value_head_files

# Where trainers put the head: transformers' ForSequenceClassification (`score`, `classifier`), TRL and LLaMA-Factory
# (`v_head.summary`), OpenRLHF (`value_head`). PEFT's modules_to_save adds `base_model.model.` in front.
_HEAD_MODULES = (
    *("score", "classifier", "classifier.out_proj"),
    *("v_head.summary", "v_head", "value_head.summary", "value_head"),
)
_HEAD_WEIGHT = re.compile(
    rf"^(?:base_model\.model\.)?(?:{'|'.join(map(re.escape, _HEAD_MODULES))})(?:\.modules_to_save\.\w+)?\.weight$"
)


@dataclass(frozen=True, slots=True)
class HeadTensors:
    """A head as it lies in a file.

    Attributes:
        name: the weight's name in the file.
        weight: `[1, H]`.
        bias: `[1]`, or None.
        dense: weight `[H, H]` and bias `[H]` of the layer before it, where the score position asks for it.
    """

    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    dense: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def sha256(self) -> str:
        """Hash of the values, whatever file they lie in."""
        tensors = {"weight": self.weight, **({} if self.bias is None else {"bias": self.bias})}
        tensors |= {} if self.dense is None else {"dense.weight": self.dense[0], "dense.bias": self.dense[1]}
        return _hash_tensors(tensors)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter in PEFT's format.

    Attributes:
        directory: where it was read.
        config: the parsed `adapter_config.json`.
        tensors: LoRA tensors under their file names, heads left out.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    @property
    def sha256(self) -> str:
        """Hash of the LoRA values and of the settings that scale them."""
        scale = {
            k: self.config.get(k)
            for k in ("r", "fan_in_fan_out", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
        }
        return hashlib.sha256((_hash_tensors(self.tensors) + json.dumps(scale, sort_keys=True)).encode()).hexdigest()


def read_head(files: Iterable[Path]) -> HeadTensors | None:
    """The head in `files`, or None if they hold none.

    Raises:
        StartError: naming the tensors, if there are several.
    """
    found: list[HeadTensors] = []
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            names = set(tensors.keys())
            for name in sorted(filter(_HEAD_WEIGHT.match, names)):
                bias = name.removesuffix("weight") + "bias"
                own = tensors.get_tensor(bias) if bias in names else None
                found.append(HeadTensors(name, tensors.get_tensor(name), own))
    if len(found) > 1:
        raise StartError(f"several heads: {', '.join(sorted(head.name for head in found))}; a signal has one")
    return found[0] if found else None


def read_dense(files: Iterable[Path], module: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Weight and bias of the layer that a classifier has before its head, or None if the files hold none.

    Args:
        files: safetensors files; the first that has it counts.
        module: what transformers calls it.
    """
    name = re.compile(rf"^(?:base_model\.model\.)?(?:\w+\.)?{re.escape(module)}(?:\.modules_to_save\.\w+)?\.weight$")
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            for weight in filter(name.match, tensors.keys()):
                return tensors.get_tensor(weight), tensors.get_tensor(weight.removesuffix("weight") + "bias")
    return None


def read_adapter(directory: Path) -> tuple[Adapter, HeadTensors | None]:
    """A PEFT LoRA adapter, and the head saved with it (`modules_to_save`) if there is one.

    Raises:
        StartError: not a LoRA adapter, remote code asked for, or every `lora_B` is zero (never trained).
    """
    config = read_config(directory, ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise StartError(f"{directory}: peft_type {config.get('peft_type')!r}; only LORA adapters are served")
    path = directory / ADAPTER_WEIGHTS
    if not path.is_file():
        raise StartError(f"{directory}: no {ADAPTER_WEIGHTS}")
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    head = read_head([path, *value_head_files(directory)])
    if head is not None:
        beside = head.name.removesuffix(".weight").removesuffix(".out_proj")  # of RoBERTa's also the dense layer
        lost = sorted(n for n in tensors if n.startswith(f"{beside}.") and "lora_" in n)
        if lost:
            raise StartError(f"{path}: {lost[0]} adapts the head itself, which is not served")
        tensors = {n: t for n, t in tensors.items() if not n.startswith(f"{beside}.")}
    outputs = [tensor for name, tensor in tensors.items() if "lora_B" in name or "lora_embedding_B" in name]
    if not any(bool(torch.count_nonzero(tensor)) for tensor in outputs):
        raise StartError(f"{path}: every lora_B is zero; the adapter was never trained")
    return Adapter(directory, config, tensors), head


def _hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
