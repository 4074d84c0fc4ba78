"""The training loop of both kinds of reward model.

Records are rendered by the service's renderer and scored by the service's forward, with gradients: what is trained is
what is served. Rows are packed without padding and cut into micro-batches by tokens; every example carries its weight
in the whole batch, so the cut does not change the loss.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from assay_service.scoring.model import RewardModel
from assay_training.algorithms.losses import bradley_terry, soft_label_cross_entropy
from assay_training.config import Optimiser
from assay_training.examples import Example, autocast, token_batches
from assay_training.records import Labelled

MIN_WARMUP_STEPS = 5
FINAL_SHARE = 0.1


def train(
    model: RewardModel,
    signal: str,
    parameters: list[nn.Parameter],
    examples: list[Example],
    settings: Optimiser,
    *,
    seed: int,
    log: Callable[[dict[str, Any]], None],
) -> None:
    """Trains `parameters` of `signal` on `examples`, in place.

    There is no dropout, so a row is the same function in training and in serving (scoring-traps 20).

    Args:
        model: holds the signal.
        signal: which one.
        parameters: what is trained.
        examples: rankings or labelled items, not both.
        settings: the optimiser.
        seed: of the order of examples.
        log: is called once per step with `step`, `loss`, `learning_rate`, `grad_norm`.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    optimiser = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    steps = settings.epochs * math.ceil(len(examples) / settings.batch_prompts)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_share(step, steps, settings.warmup_share)
    )
    order = random_batches(len(examples), settings.batch_prompts, settings.epochs, seed)
    for step, batch in enumerate(tqdm(order, total=steps, desc=f"train {signal}", unit="steps", mininterval=10)):
        loss = _accumulate(model, signal, [examples[i] for i in batch], settings)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {step}")
        norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        log({"step": step, "loss": loss, "learning_rate": schedule.get_last_lr()[0], "grad_norm": float(norm)})
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()


def predict(model: RewardModel, signal: str, examples: list[Example], settings: Optimiser) -> list[list[float]]:
    """The logit of every completion of every example, in order, computed in `settings.compute_dtype`."""
    logits: dict[int, list[float]] = {}
    by_length = sorted(range(len(examples)), key=lambda i: examples[i].tokens)
    for part in tqdm(
        list(token_batches(by_length, examples, settings.micro_batch_tokens)),
        desc=f"score {signal}",
        mininterval=10,
    ):
        with torch.inference_mode(), autocast(model, settings):
            rows = model.logits([s for i in part for s in examples[i].sequences], signal).tolist()
        for i in part:
            count = len(examples[i].sequences)
            logits[i], rows = rows[:count], rows[count:]
    return [logits[i] for i in range(len(examples))]


def learning_rate_share(step: int, steps: int, warmup_share: float) -> float:
    """Share of the peak learning rate at `step`: linear warm-up, then a cosine to a tenth (seeds §12)."""
    warmup = max(MIN_WARMUP_STEPS, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))


def random_batches(count: int, size: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """Indices of each optimiser step: every epoch a new order, the last batch of an epoch may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count, size):
            yield order[start : start + size]


def batch_loss(model: RewardModel, signal: str, part: list[Example], batch_size: int) -> torch.Tensor:
    """The share of a batch's mean loss that `part` of its `batch_size` examples contributes; fp32 scalar."""
    logits = model.logits([s for example in part for s in example.sequences], signal)
    if all(isinstance(example.record, Labelled) for example in part):
        labels = torch.tensor([example.record.label for example in part if isinstance(example.record, Labelled)])
        return soft_label_cross_entropy(logits, labels.to(logits), torch.full_like(logits, 1 / batch_size))
    better, worse, weights = _pair_indices(part, batch_size)
    return bradley_terry(logits, better, worse, weights.to(logits))


def _accumulate(model: RewardModel, signal: str, batch: list[Example], settings: Optimiser) -> float:
    """Forward and backward of one batch in micro-batches; returns the loss."""
    total = 0.0
    for part in token_batches(range(len(batch)), batch, settings.micro_batch_tokens):
        with autocast(model, settings):
            loss = batch_loss(model, signal, [batch[i] for i in part], len(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _pair_indices(part: list[Example], batch_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs in row coordinates, and their weights: a mean over each prompt's pairs, then over prompts."""
    better, worse, weights, offset = [], [], [], 0
    for example in part:
        assert not isinstance(example.record, Labelled)
        for i, j in example.record.pairs:
            better.append(offset + i)
            worse.append(offset + j)
            weights.append(1 / (len(example.record.pairs) * batch_size))
        offset += len(example.sequences)
    return torch.tensor(better), torch.tensor(worse), torch.tensor(weights)
