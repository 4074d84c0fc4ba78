"""The engine of a configuration."""

from pathlib import Path

import torch

from assay_training.config.ppo import PpoConfig
from assay_training.rollout.engine import Engine, Sampling
from assay_training.rollout.with_transformers import TransformersEngine
from assay_training.rollout.with_vllm import VllmEngine


def engine_of(config: PpoConfig, base: Path, device: torch.device) -> Engine:
    """Loads it.

    Raises:
        ConfigError: it is not installed, or the base has no EOS.
    """
    rollout = config.rollout
    sampling = Sampling(rollout.max_new_tokens, rollout.temperature)
    if rollout.engine == "transformers":
        return TransformersEngine(base, sampling, device)
    return VllmEngine(base, sampling, rollout.max_prompt_tokens + rollout.max_new_tokens, config.lora.r)
