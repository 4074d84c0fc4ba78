"""The adapter of a configuration, for PEFT."""

from peft import LoraConfig

from assay_training.config.model import Lora


def lora_config(lora: Lora, task_type: str | None = None) -> LoraConfig:
    """Without dropout, so that a row is the same function in training and in serving (scoring-traps 20)."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=lora.target_modules,
        layers_to_transform=lora.layers,
        task_type=task_type,
    )
