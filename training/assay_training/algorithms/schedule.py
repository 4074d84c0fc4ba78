"""The learning rate over a run, and the order of its examples; pure."""

import math
from collections.abc import Iterator

import torch

MIN_WARMUP_STEPS = 5
FINAL_SHARE = 0.1


def learning_rate_share(step: int, steps: int, warmup_share: float) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a cosine to a tenth ([Llama 2] 3.2.2)."""
    warmup = max(MIN_WARMUP_STEPS, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))


def cyclic_batch(count: int, size: int, step: int, seed: int) -> list[int]:
    """Indices of `size` of `count` things at `step`: one pass after the other without a break, each in a new order."""
    places = range(step * size, (step + 1) * size)
    orders = {
        number: torch.randperm(count, generator=torch.Generator().manual_seed(seed + 1_000_003 * number)).tolist()
        for number in range(places[0] // count, places[-1] // count + 1)
    }
    return [orders[place // count][place % count] for place in places]


def random_batches(count: int, size: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """Indices of each optimizer step: every epoch a new order, the last batch of an epoch may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count, size):
            yield order[start : start + size]
