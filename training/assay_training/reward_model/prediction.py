"""Predict the logits of examples with a trained reward model, on the kernels that serve it."""

from collections.abc import Sequence

import torch
from tqdm import tqdm

from assay_service.scoring.model import RewardModel
from assay_training.config.model import OptimizerConfig
from assay_training.data.examples import Example
from assay_training.models.batches import autocast, cut_token_batches


def finish_training(model: RewardModel, settings: OptimizerConfig) -> None:
    """Turn a trained model into the form that the service computes, in place; it can't be trained afterwards.

    Predictions take most of the time of an evaluation, and the service's kernels are several times as fast as torch's
    operators in mixed precision.

    Args:
        model: trained model, with weights in fp32.
        settings: settings that name the compute dtype; the base takes it, and heads stay in fp32.
    """
    if settings.compute_dtype == "bfloat16":
        model.base.to(torch.bfloat16)
    with torch.inference_mode():
        model.make_invariant()


def predict(
    model: RewardModel, signal: str, examples: Sequence[Example], settings: OptimizerConfig
) -> list[list[float]]:
    """Return the logits of each example's completions, in order, computed in `settings.compute_dtype`.

    Args:
        model: model that holds the signal.
        signal: name of the signal.
        examples: examples, in any order of length.
        settings: compute dtype and tokens of a micro-batch.
    """
    logits: dict[int, list[float]] = {}
    # Sequences of like length share a micro-batch, which bounds its memory by tokens; the order is restored below.
    by_length = sorted(range(len(examples)), key=lambda i: examples[i].tokens)
    for part in tqdm(
        list(cut_token_batches(by_length, examples, settings.micro_batch_tokens)),
        desc=f"score {signal}",
        mininterval=10,
    ):
        with torch.inference_mode(), autocast(model.device, settings):
            rows = model.logits([s for i in part for s in examples[i].sequences], signal).tolist()
        for i in part:
            count = len(examples[i].sequences)
            logits[i], rows = rows[:count], rows[count:]
    return [logits[i] for i in range(len(examples))]
