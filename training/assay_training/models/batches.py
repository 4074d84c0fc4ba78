"""Cut examples into forward passes of bounded size, and select the dtype that they are computed in."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from assay_training.config.model import Adam


class Tokens(Protocol):
    """An example that occupies tokens of a forward pass."""

    @property
    def tokens(self) -> int:
        """Return the number of tokens that the example occupies."""
        ...


def cut_token_batches(indices: Sequence[int], examples: Sequence[Tokens], limit_tokens: int) -> Iterator[list[int]]:
    """Yield consecutive parts of `indices` with at most `limit_tokens` tokens each, never splitting an example.

    Args:
        indices: indices of the examples to cut, in order.
        examples: all examples.
        limit_tokens: tokens of one forward pass. A single longer example is a part of its own.
    """
    part: list[int] = []
    tokens = 0  # bounded in tokens and not in examples, because memory grows with tokens
    for i in indices:
        if part and tokens + examples[i].tokens > limit_tokens:
            yield part
            part, tokens = [], 0
        part.append(i)
        tokens += examples[i].tokens
    if part:
        yield part


def autocast(device: torch.device, settings: Adam) -> torch.autocast:
    """Return a context in which matrix products run in `settings.compute_dtype`; heads stay in fp32.

    Args:
        device: device of the tensors.
        settings: settings that name the compute dtype.
    """
    assert settings.compute_dtype != "auto"  # it is decided when the configuration is read
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.compute_dtype == "bfloat16")
