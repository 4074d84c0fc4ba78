"""Convert a foreign checkpoint into safetensors files, `config.json`, tokenizer files and a manifest.

Nothing of the checkpoint is executed: pickles are read as tensors only, and `auto_map` is dropped. All that can be
refused is refused before the first byte is written.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from assay_service.conversion import formats, normalizer, source, write
from assay_service.conversion.formats import Format
from assay_service.conversion.plan import Base, Plan, find_head, plan
from assay_service.errors import StartError
from assay_service.scoring import files, manifest, names
from assay_service.scoring.architectures import Architecture, count_token_types, read_architecture
from assay_service.scoring.manifest import Manifest
from assay_service.scoring.special_tokens import read_special_tokens
from assay_service.scoring.template_files import read_template


@dataclass(frozen=True, slots=True)
class Request:
    """What is converted, and what the user declares about it.

    Attributes:
        source: directory of the checkpoint.
        base: directory with the `config.json` and the tokenizer that the source lacks; None if it has both.
        head: module of the head; None for a known name.
        template: file of the chat template; None takes the source's own.
        claims: declared keys, for the manifest.
    """

    source: Path
    base: Path | None
    head: str | None
    template: Path | None
    claims: Manifest


@dataclass(frozen=True, slots=True)
class _Model:
    """A whole model as it will be written."""

    paths: tuple[Path, ...]
    plan: Plan
    format: Format
    raw_config: Mapping[str, Any]
    config: Mapping[str, Any]
    tokenizer: Path
    template: str | None
    claims: Manifest | None


def convert(request: Request, out: Path) -> list[str]:
    """Convert a checkpoint into the directory `out`, and return what was done, one line each.

    Raises:
        StartError: the checkpoint cannot be converted, or `out` cannot be written; nothing is left behind.
    """
    if not request.source.is_dir():
        raise StartError(f"{request.source}: no such directory; name the directory of a checkpoint")
    if (request.source / manifest.FILE_NAME).is_file():
        raise StartError(f"{request.source}: has an {manifest.FILE_NAME} already, so it is served as it is")
    if (request.source / files.ADAPTER_CONFIG).is_file():
        return _convert_adapter(request, out)
    model = _prepare(request)
    with write.appear_whole(out) as directory:
        writer = write.WeightWriter(directory)
        _write_weights(model, writer, request.source)
        writer.close()
        write.write_json(directory / "config.json", model.config)
        write.copy_tokenizer(model.tokenizer, directory, model.template)
        if model.claims is not None:
            manifest.write(model.claims, directory)
    return list(_describe(model))


def _prepare(request: Request) -> _Model:
    """Decide everything that needs no values of tensors."""
    where = request.source
    paths = source.find_weights(where, "model")
    if not paths:
        raise StartError(f"{where}: has no weights (model.safetensors, pytorch_model.bin or their index)")
    paths += source.find_weights(where, "value_head")
    raw = _read_config(request)
    fmt = formats.recognize(raw)
    typed = dict(raw) | ({"model_type": "gpt_neox"} if raw.get("model_type") == formats.OASST_TYPE else {})
    architecture = read_architecture(typed, where)
    tokenizer = _find_tokenizer(request)
    template = _find_template(request, tokenizer, fmt)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        shapes |= {name: tuple(tensor.shape) for name, tensor in source.read_tensors(path).items()}
    head = find_head(shapes, request.head or raw.get("value_head_prefix") or fmt.head, where)
    if fmt.head not in {None, names.unwrap_name(head).removesuffix(".weight")}:
        raise StartError(
            f"{where}: config.json names {fmt.name}, whose head is {fmt.head}, but the head is {head}; take weights and "
            "config.json of one model"
        )
    own = _is_own_head(typed, head, architecture)
    module = names.unwrap_name(head).removesuffix(".weight") if own else architecture.head
    planned = plan(shapes, _build_base(typed), head, module, architecture, where)
    native = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(typed["model_type"])
    config = formats.build_config(typed, native if own or architecture.causal else None)
    claims = _decide_claims(request, fmt, typed, None if own else formats.advise_position(head, shapes))
    return _Model(tuple(paths), planned, fmt, raw, config, tokenizer, template, claims)


def _read_config(request: Request) -> dict[str, Any]:
    has_own = (request.source / "config.json").is_file()
    if not has_own and request.base is None:
        raise StartError(f"{request.source}: has no config.json; name the directory of the base model with --base")
    return files.read_config(request.source if has_own or request.base is None else request.base)


def _find_tokenizer(request: Request) -> Path:
    """Return the directory of the tokenizer, whose configuration must not ask for remote code."""
    own = (request.source / files.TOKENIZER_FILE).is_file() or request.base is None
    tokenizer = files.find_tokenizer_directory(request.source if own or request.base is None else request.base)
    read_special_tokens(tokenizer)
    return tokenizer


def _is_own_head(config: Mapping[str, Any], head: str, architecture: Architecture) -> bool:
    """Return whether the head is that of transformers' own classifier, which decides where it reads."""
    name = (config.get("architectures") or [""])[0]
    foreign = {entry.rpartition(".")[2] for entry in files.list_code_classes(config)}
    module = names.unwrap_name(head).removesuffix(".weight")
    return (
        name == MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config["model_type"])
        and name not in foreign
        and module in {architecture.head, f"{architecture.head}.out_proj"}
    )


def _build_base(config: Mapping[str, Any]) -> Base:
    """Return names and shapes of the base's tensors, from transformers' bare model without values."""
    transformers_logging.set_verbosity_error()
    try:
        parsed = CONFIG_MAPPING[config["model_type"]].from_dict(
            {key: value for key, value in config.items() if key != "auto_map"}
        )
        with torch.device("meta"):
            model = AutoModel.from_config(parsed, trust_remote_code=False)
    except Exception as error:  # transformers checks the values of a configuration with many types of errors
        raise StartError(f"config.json: transformers cannot build the model: {error}; correct the file") from error
    embedding = model.get_input_embeddings().weight
    name = next(name for name, parameter in model.named_parameters() if parameter is embedding)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return Base(f"{model.base_model_prefix}.", shapes, name)


def _find_template(request: Request, tokenizer: Path, fmt: Format) -> str | None:
    """Return the template to write; None where the source's own files are kept, or it has none."""
    if request.template is None and fmt.end_id is None:
        return None
    template = read_template(request.template, request.source, tokenizer)
    if fmt.end_id is None:
        return template
    token = read_special_tokens(tokenizer).named.get("cls_token") or _find_token(tokenizer, fmt.end_id)
    # Its code adds the token to the rendered text and reads the head there.
    end = "{%- if not add_generation_prompt -%}{{ " + repr(token) + " }}{%- endif -%}"
    return template if token in template else template.rstrip("\n") + end


def _find_token(tokenizer: Path, number: int) -> str:
    added = files.read_json(tokenizer / files.TOKENIZER_FILE).get("added_tokens") or []
    for token in added:
        if token.get("id") == number:
            return str(token["content"])
    raise StartError(
        f"{tokenizer / files.TOKENIZER_FILE}: has no token with id {number}, at which the class reads its head, and no "
        "file names a cls_token; take the tokenizer of this model"
    )


def _decide_claims(request: Request, fmt: Format, config: Mapping[str, Any], advice: str | None) -> Manifest | None:
    """Return the manifest; None where transformers' classifier decides the position and nothing is declared.

    Args:
        request: what is converted.
        fmt: format of the source.
        config: `config.json` of the source.
        advice: where trainers read such a head; None for transformers' own classifier.
    """
    declared = request.claims
    position = declared.score_position or fmt.position
    if declared.score_position is not None and fmt.position not in (None, declared.score_position):
        raise StartError(f"score_position: {fmt.name} reads {fmt.position}; remove --score-position")
    if position is None and advice is not None:
        raise StartError(
            f"score_position: give --score-position; config.json names {fmt.name}, which does not say where the head "
            f"reads. {advice}"
        )
    if position == "last_non_pad_id" and declared.pad_token_id is None and config.get("pad_token_id") is None:
        raise StartError("pad_token_id: give --pad-token-id; config.json has none, and last_non_pad_id skips it")
    claims = declared.model_copy(update={"score_position": position, "eos": declared.eos or fmt.eos})
    if claims == Manifest(token_types=None):
        return None
    # A manifest without the key would mean `zero`.
    if claims.token_types is None and count_token_types(config) > 1:
        raise StartError("token_types: give --token-types (zero or second_after_sep); the base has several token types")
    return claims


def _write_weights(model: _Model, writer: write.WeightWriter, where: Path) -> None:
    """Write all tensors, one source file in memory at a time."""
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


def _finish_head(model: _Model, parts: Mapping[str, torch.Tensor], where: Path) -> dict[str, torch.Tensor]:
    """Return weight and bias of the head, with its normalizer folded in."""
    weight, bias = parts["weight"], parts.get("bias")
    if model.format.normalize is not None:
        buffers = {name.rpartition(".")[2]: parts[name] for name in model.plan.normalizer}
        moments = normalizer.read_moments(buffers, model.raw_config, where)
        weight, bias = normalizer.fold(weight, bias, model.format.normalize, *moments)
    return {"weight": weight} | ({} if bias is None else {"bias": bias})


def _describe(model: _Model) -> Iterator[str]:
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
        raise StartError(f"{request.source}: has neither {files.ADAPTER_WEIGHTS} nor adapter_model.bin")
    if request.claims != Manifest(token_types=None) or request.template is not None or request.head is not None:
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
