"""Write the checkpoint of a reward model, as an adapter or a whole model, in the formats that the service reads."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoConfig

from assay_service.scoring import manifest as manifests
from assay_service.scoring import tokenizer
from assay_service.scoring.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from assay_training.config.reward import RewardConfig


def write_adapter(
    directory: Path, tensors: Mapping[str, torch.Tensor], config: RewardConfig, head_name: str, template: str
) -> None:
    """Write an adapter with its head in the format of [PEFT], and the chat template.

    Args:
        directory: directory of the checkpoint, created if missing; the manifest of an older checkpoint is removed.
        tensors: LoRA and head tensors under PEFT's names, fp32; `[K, H]` for the weight of `K` outputs.
        config: configuration of the run, with `lora`.
        head_name: name of the head's module, which PEFT lists in `modules_to_save`.
        template: chat template of the run.
    """
    assert config.lora is not None
    _write_tensors(directory, ADAPTER_WEIGHTS, tensors, template)
    adapter = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": config.base_reference,
        "revision": config.revision,
        "r": config.lora.r,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": config.lora.target_modules,
        "layers_to_transform": config.lora.layers,
        "bias": "none",
        "modules_to_save": [head_name],
        "inference_mode": True,
    }
    (directory / ADAPTER_CONFIG).write_text(json.dumps(adapter, indent=1) + "\n")


def write_whole(
    directory: Path, tensors: Mapping[str, torch.Tensor], template: str, base: Path, labels: int = 1
) -> None:
    """Write a base with its head in the format of transformers, with the base's tokenizer and the chat template.

    Args:
        directory: directory of the checkpoint, created if missing; the manifest of an older checkpoint is removed.
        tensors: tensors of the whole model under transformers' names, fp32; `[K, H]` for the weight of `K`
            outputs.
        template: chat template of the run.
        base: directory from which `config.json` and the tokenizer are copied.
        labels: number of outputs of the head.
    """
    _write_tensors(directory, "model.safetensors", tensors, template)
    # Without it transformers would assume two labels.
    config = AutoConfig.from_pretrained(base, num_labels=labels)
    # The tensors are float32. A base in half precision says its own dtype, and its readers would round them.
    config.dtype = "float32"
    config.save_pretrained(directory)
    tokenizer.write(base, directory, template)


def _write_tensors(directory: Path, name: str, tensors: Mapping[str, torch.Tensor], template: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    # The manifest makes a directory a checkpoint: without it, one that is half written is never served.
    (directory / manifests.FILE_NAME).unlink(missing_ok=True)
    try:
        save_file(dict(tensors), directory / name, metadata={"format": "pt"})
    except SafetensorError:  # also where the disk is full
        (directory / name).unlink(missing_ok=True)
        raise
    (directory / name).chmod(0o644)  # safetensors makes the file private, but the service may run as another user
    (directory / tokenizer.TEMPLATE_FILE).write_text(template)
