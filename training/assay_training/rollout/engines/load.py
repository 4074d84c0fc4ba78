"""Load the engine that a configuration names."""

from pathlib import Path

import torch

from assay_training.config.rollout import Sampled
from assay_training.rollout.engines.base import Engine, Sampling
from assay_training.rollout.engines.transformers import TransformersEngine
from assay_training.rollout.engines.vllm import VllmEngine


def load_engine(config: Sampled, rank: int, eos: int, base: Path, device: torch.device) -> Engine:
    """Load the engine of a configuration with its base.

    Args:
        config: configuration of the sampling.
        rank: rank of the adapters that the engine will get.
        eos: token id that ends a completion.
        base: checkpoint of the base that the adapters belong to.
        device: device of the transformers engine; vLLM selects its own.

    Raises:
        ConfigError: the configured engine is not installed.
    """
    sampling = Sampling(config.max_new_tokens, config.temperature, eos)
    if config.engine == "transformers":
        return TransformersEngine(base, sampling, device)
    return VllmEngine(base, sampling, config.max_tokens, rank)
