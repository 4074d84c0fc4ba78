"""The configuration of rejection sampling."""

from pydantic import Field

from assay_training.config.base import Name, RunConfig, Seed
from assay_training.config.data import Sources
from assay_training.config.model import Lora, OptimizerConfig
from assay_training.config.rollout import Reward, Sampled


class RejectionConfig(RunConfig):
    """A run of `assay train rejection`: rounds of sampling, picking the best by score, and learning to say them.

    Attributes:
        name: The name of the run; the run directory is `runs/NAME` unless `--out` says otherwise.
        sources: The data sets that prompts are taken from.
        lora: The adapter, which is trained on from round to round and merged in the end.
        reward: What a completion is worth.
        rollout: How completions are sampled.
        rounds: The rounds, each from the policy that the one before it left.
        prompts: The prompts of a round.
        samples: The completions of each prompt, the best of which is kept.
        optimizer: The optimizer of a round, over the best completions of this round and of all before it.
        seed: The seed of everything random.
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
