"""Write the checkpoint of a run, with one head or several, so that the service serves it as it was trained."""

from collections.abc import Sequence
from pathlib import Path

import torch

from assay_service.scoring import manifest as manifests
from assay_service.scoring.checkpoint import HeadTensors, read_adapter, read_head
from assay_service.scoring.export import collect_adapter_tensors, collect_whole_tensors
from assay_service.scoring.files import list_weight_files
from assay_service.scoring.hashing import hash_files
from assay_service.scoring.head import Head
from assay_service.scoring.model import RewardModel
from assay_training.reward_model.checkpoint import write_adapter, write_whole
from assay_training.reward_model.prediction import finish_training
from assay_training.reward_model.run import RewardRun
from assay_training.runs.directory import RunDirectory
from assay_training.runs.files import stop_if_unwritable


def save_heads(run: RunDirectory, model: RewardModel, heads: Sequence[RewardRun]) -> Path:
    """Write the checkpoint that is served, on the main process, and return its directory.

    The written weights are read back and must give the same logits. Only then the manifest, which makes the directory a
    checkpoint, is written. The model then has the form that is served; see `finish_training`.

    Args:
        run: run directory that gets the checkpoint.
        model: trained model.
        heads: runs of the heads, in the order of their outputs; several share base, adapter and rules.

    Raises:
        FloatingPointError: the logits of the trained model are not finite.
        RuntimeError: the logits of the written weights differ.
        RunStopped: the checkpoint cannot be written.
    """
    directory, first = run.path / "checkpoint", heads[0]
    if not run.writes:
        finish_training(model, first.config.optimizer)
        return directory
    names = [one.config.name for one in heads]
    head: HeadTensors | None
    if first.config.lora is None:
        with stop_if_unwritable(directory):
            write_whole(directory, collect_whole_tensors(model, *names), first.template, first.base, len(names))
        base, adapters, head = directory, [], read_head(list_weight_files(directory))
    else:
        tensors = collect_adapter_tensors(model, *names)
        with stop_if_unwritable(directory):
            write_adapter(directory, tensors, first.config, model.architecture.head, first.template)
        adapter, head = read_adapter(directory)
        base, adapters = first.base, [adapter]
    assert head is not None
    reloaded = RewardModel.load(base, torch.float32, first.device)
    for row, one in enumerate(heads):
        bias = None if head.bias is None else head.bias[row : row + 1]
        reloaded.add_signal(one.config.name, Head(head.weight[row : row + 1], bias), *adapters)
        one.check_reloaded(model, reloaded)
    del reloaded
    golden = [one.score_golden(model) for one in heads]
    finish_training(model, first.config.optimizer)
    outputs = tuple(one.build_output(model, rows) for one, rows in zip(heads, golden, strict=True))
    claims = {"outputs": outputs} if len(outputs) > 1 else outputs[0].model_dump(exclude={"name"})
    manifest = first.build_manifest(model, hash_files(list_weight_files(base)), **claims)
    with stop_if_unwritable(directory):
        manifests.write(manifest, directory)
    return directory
