"""Cut examples into forward passes of bounded size, computed in the configured dtype."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from assay_training.config.model import Adam


class Tokens(Protocol):
    """Anything that takes up tokens of a forward."""

    @property
    def tokens(self) -> int:
        """How many."""
        ...


def token_batches(indices: Sequence[int], examples: Sequence[Tokens], limit_tokens: int) -> Iterator[list[int]]:
    """Cuts `indices` into runs of at most `limit_tokens`, never splitting an example."""
    part: list[int] = []
    tokens = 0
    for i in indices:
        if part and tokens + examples[i].tokens > limit_tokens:
            yield part
            part, tokens = [], 0
        part.append(i)
        tokens += examples[i].tokens
    if part:
        yield part


def autocast(device: torch.device, settings: Adam) -> torch.autocast:
    """Matrix products in `settings.compute_dtype`; the head stays in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.compute_dtype == "bfloat16")
