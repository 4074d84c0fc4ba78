"""The adapter of a configuration, for PEFT."""

from typing import Any

from peft import LoraConfig
from torch import nn

from assay_training.config.base import ConfigError
from assay_training.config.model import Lora


def lora_config(lora: Lora, model: Any, task_type: str | None = None) -> LoraConfig:  # noqa: ANN401 - transformers
    """Without dropout, so that a row is the same function in training and in serving (scoring-traps 20).

    Raises:
        ConfigError: `model` has no linear of a name, or fewer layers; PEFT adapts what it finds and is silent.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in lora.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in linears):
            raise ConfigError(f"lora: target_modules: the base has no linear {target!r}")
    count = model.config.num_hidden_layers
    if lora.layers is not None and max(lora.layers, default=0) >= count:
        raise ConfigError(f"lora: layers: the base has no layer {max(lora.layers)}; its {count} layers count from 0")
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=lora.target_modules,
        layers_to_transform=lora.layers,
        task_type=task_type,
    )
