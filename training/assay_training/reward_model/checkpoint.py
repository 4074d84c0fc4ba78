"""Write the checkpoint of a reward model, as an adapter or as a whole model, in the formats that the service reads."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from assay_service.scoring import manifest as manifests
from assay_service.scoring import tokenizer
from assay_service.scoring.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from assay_training.config.reward import RewardConfig


def write_adapter(
    directory: Path, tensors: Mapping[str, torch.Tensor], config: RewardConfig, head_name: str, template: str
) -> None:
    """Writes an adapter with its head in PEFT's format, and the template.

    Args:
        directory: is created if need be; a manifest of an older checkpoint in it is removed.
        tensors: LoRA and head tensors under PEFT's names.
        config: the run's.
        head_name: the module that PEFT calls `modules_to_save`.
        template: the run's.
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


def write_whole(directory: Path, tensors: Mapping[str, torch.Tensor], template: str, base: Path) -> None:
    """Writes a base with its head in transformers' format, the base's tokenizer, and the template.

    Args:
        directory: is created if need be; a manifest of an older checkpoint in it is removed.
        tensors: all of them, under transformers' names.
        template: the run's.
        base: where `config.json` and the tokenizer are copied from.
    """
    _write_tensors(directory, "model.safetensors", tensors, template)
    config = AutoConfig.from_pretrained(base, num_labels=1)
    # The tensors are float32. A base in half precision says its own dtype, and its readers would round them.
    config.dtype = "float32"
    config.save_pretrained(directory)
    tokenizer.write(base, directory, template)


def _write_tensors(directory: Path, name: str, tensors: Mapping[str, torch.Tensor], template: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / manifests.FILE_NAME).unlink(missing_ok=True)
    save_file(dict(tensors), directory / name, metadata={"format": "pt"})
    (directory / name).chmod(0o644)  # safetensors makes it private, and the server may be another user
    (directory / tokenizer.TEMPLATE_FILE).write_text(template)
