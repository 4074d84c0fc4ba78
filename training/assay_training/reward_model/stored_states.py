"""Compute the layers below the adapter once for every text of a training, and train on their stored hidden states."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from assay_service.scoring.model import RewardModel
from assay_training.config.base import ConfigError
from assay_training.config.reward import RewardConfig
from assay_training.data.examples import Example
from assay_training.distributed.processes import get_accelerator, print_once
from assay_training.errors import RunStopped
from assay_training.models.batches import autocast, cut_token_batches
from assay_training.models.lower_layers import LowerLayers
from assay_training.runs.directory import RunDirectory, hash_base
from assay_training.runs.states import StateStore

FOLDER = "lower_layers"


def check_lower_layers(config: RewardConfig, model: RewardModel) -> None:
    """Check that the base and the processes of a run can store the hidden states that `lower_layers` asks for.

    Args:
        config: configuration of the run.
        model: model of the base, with or without weights.

    Raises:
        ConfigError: the architecture is not computed in packed rows, or several processes train together.
    """
    if config.lower_layers == "compute":
        return
    if not model.architecture.packed:
        raise ConfigError(
            f"lower_layers: {config.lower_layers} is not implemented for {model.base.config.model_type}, whose "
            "sequences are not packed; write lower_layers: compute"
        )
    if get_accelerator().num_processes > 1:
        raise ConfigError(
            f"lower_layers: {config.lower_layers} needs a run in one process; start it without a launcher, or write "
            "lower_layers: compute"
        )


@contextmanager
def reuse_lower_layers(
    model: RewardModel, config: RewardConfig, base: Path, run: RunDirectory, examples: Sequence[Example]
) -> Iterator[None]:
    """Let the forward passes of the block use stored hidden states, after computing those that are not stored yet.

    Without `lower_layers` in the configuration, this has no effect.

    Args:
        model: model with the fresh signal of the run.
        config: configuration of the run; of one of its heads if there are several.
        base: directory of the base.
        run: run directory, which gets the store.
        examples: all examples of the training.

    Raises:
        RunStopped: the disk has no room for the states, or they cannot be written.
    """
    if config.lower_layers == "compute":
        yield
        return
    assert config.lora is not None
    assert config.lora.layers is not None
    count = min(config.lora.layers)
    lower = LowerLayers(model, count)
    folder = run.path / FOLDER if config.lower_layers == "keep" else run.path / "state" / FOLDER
    dtype = torch.bfloat16 if config.optimizer.compute_dtype == "bfloat16" else torch.float32
    store = StateStore(folder, {**hash_base(base), "layers": count}, model.hidden_size, dtype)
    missing, tokens = _find_missing(lower, store, examples)
    _check_room(folder, tokens, store.token_bytes)
    _record(model, config, lower, store, missing)
    with lower.replace(store.read):
        yield


def _find_missing(lower: LowerLayers, store: StateStore, examples: Sequence[Example]) -> tuple[list[Example], int]:
    """Return the examples with texts that are not stored yet, and the number of tokens that they add."""
    claimed: dict[str, int] = {}
    missing = []
    # Once each: a mixture repeats examples.
    for example in dict.fromkeys(examples):
        parts = {key: n for s in example.sequences for key, n in lower.identify(s).items()}
        new = {key: n for key, n in parts.items() if key not in store and key not in claimed}
        if new:
            missing.append(example)
            claimed |= new
    return missing, sum(claimed.values())


def _check_room(folder: Path, tokens: int, token_bytes: int) -> None:
    """Print how much is stored, and check that the disk has room for it.

    Raises:
        RunStopped: it has not.
    """
    if not tokens:
        return
    size, free = tokens * token_bytes, shutil.disk_usage(folder).free
    print_once(f"lower_layers: storing the hidden states of {tokens:,} tokens in {folder}: {size / 1e6:,.1f} MB")
    if size > free:
        raise RunStopped(
            f"lower_layers: {folder} needs {size / 1e6:,.1f} MB for hidden states, and its disk has {free / 1e6:,.1f} "
            "MB free; free disk space and run the command again, or train with lower_layers: compute"
        )


def _record(
    model: RewardModel, config: RewardConfig, lower: LowerLayers, store: StateStore, missing: Sequence[Example]
) -> None:
    """Compute and store the hidden states of examples, in the dtype and by the operators of the training."""
    settings = config.optimizer
    batches = list(cut_token_batches(range(len(missing)), missing, settings.micro_batch_tokens))
    for batch in tqdm(batches, desc="lower layers", mininterval=10):
        sequences = [sequence for i in batch for sequence in missing[i].sequences]
        with lower.record() as found, torch.no_grad(), autocast(model.device, settings):
            model.pooled(sequences, config.name)
        store.append({key: states for key, states in found.items() if key not in store})
