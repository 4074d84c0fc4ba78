"""A PEFT adapter's configuration, as far as it shapes a forward. What is not understood is refused, not ignored."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig

from assay_service.errors import StartError
from assay_service.scoring.checkpoint import Adapter

# What shapes the forward and is handed to PEFT. Which modules are adapted is read off the tensors.
_SHAPING = ("r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out")
_PATTERNS = ("rank_pattern", "alpha_pattern")

# What says how the adapter was made or found, and does not shape the forward of trained weights.
_HISTORY = frozenset(
    {"peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "auto_mapping"}
    | {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "peft_version", "modules_to_save"}
    | {"init_lora_weights"}
)

# Other initialisations (PiSSA, OLoRA, CorDA, LoftQ) change the base's weights, which this base does not have.
_HARMLESS_INITS = (True, False, "gaussian", "orthogonal")
_HEADS = ("score", "classifier", "v_head", "value_head")


def bare_tensors(adapter: Adapter, base_model_prefix: str) -> dict[str, torch.Tensor]:
    """The adapter's tensors under the names of a bare base, whatever wrapped it in training."""
    return {_bare(name, base_model_prefix): tensor for name, tensor in adapter.tensors.items()}


def lora_config(adapter: Adapter, base_model_prefix: str) -> LoraConfig:
    """The configuration to inject on a bare base.

    Raises:
        StartError: naming the key, if the adapter asks for something that is not served.
    """
    _refuse_what_is_not_understood(adapter)
    patterns = {
        key: {_bare(pattern.removeprefix("^"), base_model_prefix): value for pattern, value in given.items()}
        for key in _PATTERNS
        if (given := adapter.config.get(key))
    }
    modules = sorted({name.rpartition(".lora_")[0] for name in bare_tensors(adapter, base_model_prefix)})
    shaping = {key: adapter.config[key] for key in _SHAPING if key in adapter.config}
    return LoraConfig(**shaping, **patterns, target_modules=modules, inference_mode=True)


def _refuse_what_is_not_understood(adapter: Adapter) -> None:
    config: Mapping[str, Any] = adapter.config
    defaults = LoraConfig().to_dict()
    for key, value in config.items():
        if key in _HISTORY or key in _SHAPING or key in _PATTERNS or not value:
            continue
        if key not in defaults or value != defaults[key]:
            raise StartError(f"{adapter.directory}: LoRA setting {key!r} is not served")
    if config.get("init_lora_weights", True) not in _HARMLESS_INITS:
        raise StartError(f"{adapter.directory}: init_lora_weights {config['init_lora_weights']!r} changes the base")
    for module in config.get("modules_to_save") or ():
        if module not in _HEADS:
            raise StartError(f"{adapter.directory}: modules_to_save {module!r} is not served, only heads are")


def _bare(name: str, base_model_prefix: str) -> str:
    return re.sub(rf"^(?:base_model\.model\.)?(?:{re.escape(base_model_prefix)}\.)?", "", name)
