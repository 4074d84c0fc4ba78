"""Compute the learning rate over a run and the order of its examples; both follow from the step and the seed."""

import math
from collections.abc import Iterator

import torch

MIN_WARMUP_STEPS = 5
FINAL_SHARE = 0.1
SEED_STRIDE = 1_000_003  # large, so that passes or steps of runs with neighboring seeds never share an order


def compute_learning_rate_share(step: int, steps: int, warmup_share: float) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a cosine to a tenth ([Llama 2] section 3.2.2).

    Args:
        step: number of the step, from 0.
        steps: number of steps of the whole run.
        warmup_share: share of the steps in which the learning rate rises, 0..1; at least 5 steps.
    """
    warmup = max(MIN_WARMUP_STEPS, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))


def draw_cyclic_batch(count: int, size: int, step: int, seed: int) -> list[int]:
    """Return the indices of the batch at `step`, when batches are cut from an endless sequence of shuffled passes.

    Every pass over the `count` items has a new order. A batch may contain the end of one pass and the start of the
    next, so all batches have the same size. The result depends on the arguments alone: a resumed run needs no state.

    Args:
        count: number of items.
        size: number of items in a batch.
        step: number of the batch, from 0.
        seed: seed of the orders.
    """
    places = range(step * size, (step + 1) * size)
    orders = {
        number: torch.randperm(count, generator=torch.Generator().manual_seed(seed + SEED_STRIDE * number)).tolist()
        for number in range(places[0] // count, places[-1] // count + 1)
    }
    return [orders[place // count][place % count] for place in places]


def draw_random_batches(count: int, size: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """Yield the indices of each optimizer step; every epoch has a new order, and its last batch may be smaller.

    Args:
        count: number of items.
        size: number of items in a batch.
        epochs: number of passes over the items.
        seed: seed of the orders.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count, size):
            yield order[start : start + size]
