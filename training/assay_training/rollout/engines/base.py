"""What an engine must do, whichever it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from assay_training.rollout.completion import Completion, Ids


@dataclass(frozen=True, slots=True)
class Sampling:
    """How every completion is sampled: from the whole distribution, as log-probabilities of it are compared later.

    Attributes:
        max_new_tokens: of a completion.
        temperature: that logits are divided by; 0, which vLLM alone takes, for the likeliest token.
        eos: id that ends a completion.
    """

    max_new_tokens: int
    temperature: float
    eos: int


class Engine(Protocol):
    """Samples from a base with an adapter."""

    def push(self, adapter: Path) -> None:
        """Samples from this adapter from now on.

        Args:
            adapter: a directory in PEFT's format, which no other adapter has had before.
        """
        ...

    def generate(self, prompts: Sequence[Ids], seed: int) -> list[Completion]:
        """One completion of each prompt, in order.

        Args:
            prompts: equal ones get completions of their own.
            seed: of the samples; the same seed, prompts and adapter sample the same.
        """
        ...

    def close(self) -> None:
        """Gives back memory and processes; afterwards nothing is sampled."""
        ...
