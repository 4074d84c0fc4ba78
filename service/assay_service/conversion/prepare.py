"""Decide everything about a conversion that needs no values of tensors, so that most refusals come first."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from assay_service.conversion import formats, source
from assay_service.conversion.formats import Format
from assay_service.conversion.plan import Base, Plan, find_head, plan
from assay_service.errors import StartError
from assay_service.scoring import files, names
from assay_service.scoring.architectures import Architecture, count_token_types, read_architecture, read_class
from assay_service.scoring.manifest import Manifest
from assay_service.scoring.quantization import check_declared
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
class Prepared:
    """A whole model as it will be written."""

    paths: tuple[Path, ...]
    plan: Plan
    format: Format
    raw_config: Mapping[str, Any]
    config: Mapping[str, Any]
    tokenizer: Path
    template: str | None
    claims: Manifest | None


def prepare(request: Request) -> Prepared:
    """Decide how a checkpoint is converted.

    Raises:
        StartError: it cannot be converted as declared; the message names the key, file or tensor.
    """
    where = request.source
    paths = _find_files(where)
    raw = _read_config(request)
    fmt = formats.recognize(raw)
    # transformers does not know Open-Assistant's model type, whose base is a plain GPT-NeoX.
    config = dict(raw) | ({"model_type": "gpt_neox"} if raw.get("model_type") == formats.OASST_TYPE else {})
    architecture = read_architecture(config, where)
    check_declared(config, None, where)
    tokenizer = find_tokenizer(request)
    template = _find_template(request, tokenizer, fmt)
    shapes = {n: tuple(tensor.shape) for path in paths for n, tensor in source.read_tensors(path).items()}
    head = _find_head(request, shapes, raw, fmt)
    # transformers' class fixes where its head reads; any other head needs a declared position.
    own = _is_own_head(config, head, architecture)
    module = _get_module(head) if own else architecture.head
    planned = plan(shapes, build_base(config), head, module, architecture, where)
    # Named in the written file, so that transformers itself can load the result.
    native = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config["model_type"])
    written = formats.build_config(config, native if own or architecture.causal else None)
    claims = _decide_claims(request, fmt, config, None if own else formats.advise_position(head, shapes))
    return Prepared(paths, planned, fmt, raw, written, tokenizer, template, claims)


def _find_files(directory: Path) -> tuple[Path, ...]:
    """Return the files of the weights, and of a value head that is saved beside them."""
    paths = source.find_weights(directory, "model")
    if not paths:
        raise StartError(
            f"{directory}: has no weights (model.safetensors, pytorch_model.bin or their index); download the "
            "checkpoint again"
        )
    return (*paths, *source.find_weights(directory, "value_head"))


def _get_module(head: str) -> str:
    """Return the module of a head's weight, without the prefixes of wrappers."""
    return names.unwrap_name(head).removesuffix(".weight")


def _find_head(request: Request, shapes: names.Shapes, config: Mapping[str, Any], fmt: Format) -> str:
    head = find_head(shapes, config, request.head or config.get("value_head_prefix") or fmt.head, request.source)
    if fmt.head not in {None, _get_module(head)}:
        raise StartError(
            f"{request.source}: config.json names {fmt.name}, whose head is {fmt.head}, but the head is {head}; take "
            "weights and config.json of one model"
        )
    return head


def _read_config(request: Request) -> dict[str, Any]:
    has_own = (request.source / "config.json").is_file()
    if not has_own and request.base is None:
        raise StartError(f"{request.source}: has no config.json; name the directory of the base model with --base")
    return files.read_config(request.source if has_own or request.base is None else request.base)


def find_tokenizer(request: Request) -> Path:
    """Return the directory of the tokenizer, whose configuration must not ask for remote code."""
    own = (request.source / files.TOKENIZER_FILE).is_file() or request.base is None
    tokenizer = files.find_tokenizer_directory(request.source if own or request.base is None else request.base)
    read_special_tokens(tokenizer)
    return tokenizer


def _is_own_head(config: Mapping[str, Any], head: str, architecture: Architecture) -> bool:
    """Return whether the head is that of transformers' own classifier, which decides where it reads."""
    name = read_class(config)
    foreign = {entry.rpartition(".")[2] for entry in files.list_code_classes(config)}
    return (
        name == MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config["model_type"])
        and name not in foreign
        and _get_module(head) in {architecture.head, f"{architecture.head}.out_proj"}
    )


def build_base(config: Mapping[str, Any]) -> Base:
    """Return names and shapes of the base's tensors, from transformers' bare model without values.

    Raises:
        StartError: transformers cannot build the model of this configuration.
    """
    transformers_logging.set_verbosity_error()
    try:
        parsed = CONFIG_MAPPING[config["model_type"]].from_dict(
            {key: value for key, value in config.items() if key != "auto_map"}
        )
        # Names and shapes only: a base of 70B parameters would not fit into memory.
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
        request: source and declared keys.
        fmt: format of the source.
        config: `config.json` of the source.
        advice: places where trainers read such a head; None for transformers' own classifier.
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
    # Declared keys win; the format fills those that its code decides.
    claims = declared.model_copy(update={"score_position": position, "eos": declared.eos or fmt.eos})
    if claims == Manifest(token_types=None):
        return None
    # A manifest without the key would mean `zero`.
    if claims.token_types is None and count_token_types(config) > 1:
        raise StartError("token_types: give --token-types (zero or second_after_sep); the base has several token types")
    return claims
