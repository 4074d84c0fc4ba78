"""Declare the configuration of rejection sampling."""

from pydantic import Field

from assay_training.config.base import Name, RunConfig, Seed
from assay_training.config.data import Sources
from assay_training.config.model import Lora, OptimizerConfig
from assay_training.config.rollout import Reward, Sampled


class RejectionConfig(RunConfig):
    """A run of `assay train rejection`: rounds of sampling, picking the best by score, and training on the picked.

    Attributes:
        name: The name of the run; the run directory is `runs/NAME` unless `--out` is given.
        sources: The data sets that prompts are taken from.
        lora: The adapter, which all rounds train in turn; it is merged at the end.
        reward: The reward of a completion.
        rollout: The sampling of completions.
        rounds: The number of rounds, each from the policy of the round before it.
        prompts: The number of prompts of a round.
        samples: The number of completions per prompt, of which the best is kept.
        optimizer: The optimizer of a round, which trains on the best completions of all rounds so far.
        seed: The seed of all random draws.
    """

    name: Name
    sources: Sources
    lora: Lora
    reward: Reward
    rollout: Sampled
    rounds: int = Field(gt=0)
    prompts: int = Field(gt=0)
    samples: int = Field(gt=1)
    optimizer: OptimizerConfig
    seed: Seed = 0
