"""Convert a language model whose reward is the logit of a token: it keeps its output layer, and has no other head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from assay_service.conversion import source, write
from assay_service.conversion.plan import Plan, plan
from assay_service.conversion.prepare import Request, build_base, find_tokenizer
from assay_service.errors import StartError
from assay_service.scoring import files, names
from assay_service.scoring.architectures import read_architecture, read_class
from assay_service.scoring.language_models import OUTPUT_LAYERS
from assay_service.scoring.manifest import Manifest
from assay_service.scoring.template_files import read_template

_OUTPUTS = tuple(f"{module}." for module in OUTPUT_LAYERS)


def is_language_model(request: Request) -> bool:
    """Return whether `config.json` names transformers' language model, and no tensor belongs to a head."""
    if request.head is not None or not (request.source / "config.json").is_file():
        return False
    config = files.read_config(request.source)
    native = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(config.get("model_type")))
    if (read_class(config) or None) != native or config.get("value_head_prefix"):
        return False
    plain = {names.unwrap_name(name) for name in _read_shapes(request.source, "model", "value_head")}
    roots = tuple(f"{module}." for module in names.HEAD_MODULES)
    return any(name.startswith(_OUTPUTS) for name in plain) and not any(name.startswith(roots) for name in plain)


def convert_language_model(request: Request, out: Path) -> list[str]:
    """Convert the model into the directory `out`, and return what was done, one line each.

    Raises:
        StartError: a tensor is missing, unknown or of the wrong shape, or `out` cannot be written.
    """
    where = request.source
    config = {key: value for key, value in files.read_config(where).items() if key != "auto_map"}
    targets = _plan_targets(where, config)
    tokenizer = find_tokenizer(request)
    template = None if request.template is None else read_template(request.template, where, tokenizer)
    # An empty manifest would hide that nothing was declared.
    claims = None if request.claims == Manifest(token_types=None) else request.claims
    with write.write_checkpoint(out, config, tokenizer, template, claims) as writer:
        writer.add_files(map(source.read_tensors, source.find_weights(where, "model")), targets)
    return ["this is a language model: if its reward is the logit of a token, declare `head: {tokens: [TOKEN]}`"]


def _read_shapes(where: Path, *stems: str) -> dict[str, tuple[int, ...]]:
    paths = [path for stem in stems for path in source.find_weights(where, stem)]
    return {name: tuple(tensor.shape) for path in paths for name, tensor in source.read_tensors(path).items()}


def _plan_targets(where: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the written name of every tensor of the base, and of the output layer under its own name."""
    planned: Plan = plan(
        _read_shapes(where, "model"), build_base(config), "", "", read_architecture(config, where), where
    )
    # They are a model and its reference, and nothing says which one is meant.
    if planned.copies:
        raise StartError(
            f"{where}: tensors {' and '.join(planned.copies[0])} have one place in the model; save only one model"
        )
    outputs = {name: names.unwrap_name(name) for name in planned.dropped}
    return {**planned.targets, **{name: plain for name, plain in outputs.items() if plain.startswith(_OUTPUTS)}}
