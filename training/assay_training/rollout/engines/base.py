"""Define the protocol of an engine, which samples completions from a base with an adapter."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from assay_training.rollout.completion import Completion, Ids


@dataclass(frozen=True, slots=True)
class Sampling:
    """The settings of sampling, always from the full distribution.

    Top-p and top-k are never used: PPO needs the log-probabilities of the distribution that was sampled from, and the
    trainer computes the full one.

    Attributes:
        max_new_tokens: largest number of tokens of a completion.
        temperature: divisor of the logits; 0, for vLLM only, selects the most likely token.
        eos: token id that ends a completion.
    """

    max_new_tokens: int
    temperature: float
    eos: int


class Engine(Protocol):
    """An engine that samples completions from a base with an adapter."""

    def push(self, adapter: Path) -> None:
        """Sample from this adapter from now on.

        Args:
            adapter: directory in PEFT's format, which no other adapter has had before.
        """
        ...

    def generate(self, prompts: Sequence[Ids], seed: int) -> list[Completion]:
        """Sample one completion of each prompt, in order.

        Args:
            prompts: token ids of the prompts; equal prompts get completions of their own.
            seed: seed of the sampling; the same seed, prompts and adapter give the same completions.
        """
        ...

    def close(self) -> None:
        """Release memory and processes; the engine cannot sample afterwards."""
        ...
