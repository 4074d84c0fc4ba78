"""The adapter of a configuration, for PEFT."""

from typing import Any

from peft import LoraConfig
from torch import nn

from assay_training.config.base import ConfigError
from assay_training.config.model import Lora


def lora_config(lora: Lora, model: Any, task_type: str | None = None) -> LoraConfig:  # noqa: ANN401 - transformers
    """Without dropout, so that a row is the same function in training and in serving (scoring-traps 20).

    Raises:
        ConfigError: `model` has no linear of a name, or fewer layers; PEFT adapts what it finds and is silent. Or the
            linear is the output layer, which is applied by itself, without an adapter.
    """
    head = model.get_output_embeddings()
    for target in lora.target_modules:
        found = [module for name, module in model.named_modules() if f".{name}".endswith(f".{target}")]
        linears = [module for module in found if isinstance(module, nn.Linear)]
        if not linears:
            raise ConfigError(f"lora.target_modules: the base has no linear {target!r}")
        if any(linear is head for linear in linears):
            raise ConfigError(f"lora.target_modules: {target!r} is the output layer, which gets no adapter")
    count = model.config.num_hidden_layers
    if lora.layers is not None and max(lora.layers, default=0) >= count:
        raise ConfigError(f"lora.layers: the base has no layer {max(lora.layers)}; its {count} layers count from 0")
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=lora.target_modules,
        layers_to_transform=lora.layers,
        task_type=task_type,
    )
