"""Convert a foreign checkpoint into safetensors files, `config.json`, tokenizer files and a manifest.

Nothing of the checkpoint is executed: pickles are read as tensors only, and `auto_map` is dropped. All that can be
refused is refused before the first byte is written.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from assay_service.conversion import normalizer, source, write
from assay_service.conversion.language_model import convert_language_model, is_language_model
from assay_service.conversion.ldl import convert_ldl, is_ldl
from assay_service.conversion.prepare import Prepared, Request, prepare
from assay_service.errors import StartError
from assay_service.scoring import files, manifest
from assay_service.scoring.manifest import Manifest


def convert(request: Request, out: Path) -> list[str]:
    """Convert a checkpoint into the directory `out`, and return what was done, one line each.

    Raises:
        StartError: the checkpoint cannot be converted, or `out` cannot be written; nothing is left behind.
    """
    if not request.source.is_dir():
        raise StartError(f"{request.source}: no such directory; name the directory of a checkpoint")
    if (request.source / manifest.FILE_NAME).is_file():
        raise StartError(f"{request.source}: has an {manifest.FILE_NAME} already; serve it as it is")
    if (request.source / files.ADAPTER_CONFIG).is_file():
        return _convert_adapter(request, out)
    if is_ldl(request.source):
        return convert_ldl(request, out)
    if is_language_model(request):
        return convert_language_model(request, out)
    model = prepare(request)
    with write.write_checkpoint(out, model.config, model.tokenizer, model.template, model.claims) as writer:
        _write_weights(model, writer, request.source)
    return list(_describe(model))


def _write_weights(model: Prepared, writer: write.WeightWriter, where: Path) -> None:
    """Write all tensors, one source file in memory at a time."""
    # Weight and bias of the head may be in different files, and its normalizer in a third.
    head: dict[str, torch.Tensor] = {}
    first: dict[str, torch.Tensor] = {}
    wanted = {kept for kept, _ in model.plan.copies}
    copies = {copy: kept for kept, copy in model.plan.copies}
    bias = model.plan.head.removesuffix("weight") + "bias"
    for path in model.paths:
        tensors = source.read_tensors(path)
        for name, tensor in tensors.items():
            if name in wanted or name in copies:
                _check_copy(first, copies.get(name, name), name, tensor, where)
            if name in {model.plan.head, bias}:
                head["weight" if name == model.plan.head else "bias"] = tensor.clone()
            elif name in model.plan.normalizer:
                head[name] = tensor.clone()
            elif name in model.plan.targets:
                writer.add(model.plan.targets[name], tensor)
        # The tensors of a pickle are views of its mapped file, which can be closed once they are written.
        writer.flush()
    for part, tensor in _finish_head(model, head, where).items():
        target = model.plan.targets[model.plan.head].removesuffix("weight") + part
        writer.add(target, tensor)


def _check_copy(first: dict[str, torch.Tensor], kept: str, name: str, tensor: torch.Tensor, where: Path) -> None:
    """Refuse two tensors with one place in the model that differ, as those of a policy and its reference."""
    other = first.setdefault(kept, tensor)
    if not torch.equal(other, tensor):
        raise StartError(
            f"{where}: tensors {kept} and {name} have one place in the model, but differ; save only the reward model"
        )


def _finish_head(model: Prepared, parts: Mapping[str, torch.Tensor], where: Path) -> dict[str, torch.Tensor]:
    """Return weight and bias of the head, with its normalizer folded in."""
    weight, bias = parts["weight"], parts.get("bias")
    if model.format.normalize is not None:
        buffers = {name.rpartition(".")[2]: parts[name] for name in model.plan.normalizer}
        moments = normalizer.read_moments(buffers, model.raw_config, where)
        weight, bias = normalizer.fold(weight, bias, model.format.normalize, *moments)
    return {"weight": weight} | ({} if bias is None else {"bias": bias})


def _describe(model: Prepared) -> Iterator[str]:
    """Yield what was changed, for the user."""
    head = model.plan.head
    yield f"head: {head} is written as {model.plan.targets[head]}"
    if (function := model.format.normalize) is not None:
        yield f"normalizer: folded into the head ({function})"
    elif model.plan.normalizer:
        yield "normalizer: not applied, because do_normalize is false"
    if model.raw_config.get("score_type") == "cost":
        yield "score_type is cost: a high score is bad; give the signal a negative weight in a blend"
    if model.template is not None:
        yield "template: written into the checkpoint"
    if classes := files.list_code_classes(model.raw_config):
        yield f"auto_map: dropped; its code ({', '.join(classes)}) was not run"
    if model.plan.dropped:
        yield f"dropped, because no reward model reads it: {', '.join(model.plan.dropped)}"


def _convert_adapter(request: Request, out: Path) -> list[str]:
    """Convert the pickles of a LoRA adapter; names and configuration stay as PEFT and its trainer wrote them."""
    config = files.read_config(request.source, files.ADAPTER_CONFIG)
    files.refuse_code(config, request.source / files.ADAPTER_CONFIG)
    parts = {name: source.find_weights(request.source, name) for name in ("adapter_model", "value_head")}
    if not parts["adapter_model"]:
        raise StartError(
            f"{request.source}: has neither {files.ADAPTER_WEIGHTS} nor adapter_model.bin; download the adapter again"
        )
    # An adapter is served with declared keys, and a manifest would be a second place for them.
    if request != Request(request.source, None, None, None, Manifest(token_types=None)):
        raise StartError(f"{request.source}: is a LoRA adapter; declare its keys to `assay serve`, not here")
    # A relative path starts at the adapter, which now lies elsewhere.
    reference = str(config.get("base_model_name_or_path") or "")
    if reference and not Path(reference).is_absolute() and (request.source / reference).is_dir():
        config["base_model_name_or_path"] = str((request.source / reference).resolve())
    with write.appear_whole(out) as directory:
        for name, paths in parts.items():
            for path in paths:
                write.save(source.read_tensors(path), directory / f"{name}.safetensors")
        write.write_json(directory / files.ADAPTER_CONFIG, config)
        write.copy_tokenizer(request.source, directory, None)
    return [f"{path.name}: written as {name}.safetensors" for name, paths in parts.items() for path in paths]
