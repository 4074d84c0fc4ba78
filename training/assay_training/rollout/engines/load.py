"""The engine of a configuration."""

from pathlib import Path

import torch

from assay_training.config.rollout import Sampled
from assay_training.rollout.engines.base import Engine, Sampling
from assay_training.rollout.engines.transformers import TransformersEngine
from assay_training.rollout.engines.vllm import VllmEngine


def engine_of(config: Sampled, rank: int, eos: int, base: Path, device: torch.device) -> Engine:
    """Loads it.

    Args:
        config: of the samples.
        rank: of the adapters that it will get.
        eos: id that ends a completion.
        base: what they are adapters of.
        device: where to put it.

    Raises:
        ConfigError: it is not installed.
    """
    sampling = Sampling(config.max_new_tokens, config.temperature, eos)
    if config.engine == "transformers":
        return TransformersEngine(base, sampling, device)
    return VllmEngine(base, sampling, config.max_tokens, rank)
