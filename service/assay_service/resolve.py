"""Decide how every signal is served from the configuration and the checkpoints' JSON files, before torch is imported.

A value is what the configuration declares, else what the checkpoint's manifest claims, else what the checkpoint's own
files make certain. Where none of them says it, the service does not start. What both say must agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from assay_service.errors import StartError
from assay_service.scoring import files, manifest
from assay_service.scoring.architectures import ARCHITECTURES, longest_sequence
from assay_service.scoring.manifest import Kind, Manifest, ScorePosition
from assay_service.scoring.mix import Moments
from assay_service.scoring.rules import RenderRules
from assay_service.scoring.template import read_template
from assay_service.settings import Settings, SignalSettings

DTYPES = ("float32", "bfloat16", "float16")

_Claim = TypeVar("_Claim")


@dataclass(frozen=True, slots=True)
class ResolvedSignal:
    """A signal with everything decided that needs no tensor.

    Attributes:
        settings: what the configuration declares.
        kind: what the logit means.
        base: directory of the base.
        adapter: directory of the LoRA adapter with its head; None serves the base's own head.
        tokenizer: directory that holds the tokenizer's files: the adapter's, if it brings one, else the base's.
        config: the base's `config.json`.
        dtype: what the base computes in.
        rules: how text becomes ids.
        moments: mean and standard deviation of the logits; None where they are not known.
        claims: the checkpoint's manifest.
    """

    settings: SignalSettings
    kind: Kind
    base: Path
    adapter: Path | None
    tokenizer: Path
    config: Mapping[str, Any]
    dtype: str
    rules: RenderRules
    moments: Moments | None
    claims: Manifest


def resolve(settings: Settings) -> dict[str, ResolvedSignal]:
    """Return every signal of `settings`, resolved, by name.

    Raises:
        StartError: naming the signal and the key or file.
    """
    resolved = {}
    for name, signal in settings.signals.items():
        try:
            resolved[name] = _resolve_signal(signal, settings.directory)
        except StartError as error:
            raise StartError(f"signals.{name}: {error.message}") from error
    return resolved


def _resolve_signal(settings: SignalSettings, relative_to: Path) -> ResolvedSignal:
    base = files.resolve(settings.base, settings.revision, relative_to)
    adapter = None if settings.adapter is None else files.resolve(settings.adapter, None, relative_to)
    directory = adapter or base
    claims = manifest.read(directory)
    config = files.read_config(base)
    tokenizer = directory if (directory / "tokenizer.json").is_file() else base
    declared = None if settings.template is None else relative_to / Path(settings.template).expanduser()
    template = read_template(declared, directory, tokenizer)
    return ResolvedSignal(
        settings=settings,
        kind=_settle("kind", settings.kind, claims.kind),
        base=base,
        adapter=adapter,
        tokenizer=tokenizer,
        config=config,
        dtype=settings.dtype or _dtype(config),
        rules=_rules(settings, claims, config, template),
        moments=_moments(settings, claims),
        claims=claims,
    )


def _rules(settings: SignalSettings, claims: Manifest, config: Mapping[str, Any], template: str) -> RenderRules:
    positions = longest_sequence(config)
    max_length = settings.max_length or claims.max_length or positions
    if not isinstance(max_length, int):
        raise StartError("max_length: not declared, and neither the manifest nor config.json has it")
    longest = min(claims.max_length or max_length, positions or max_length)
    if max_length > longest:
        raise StartError(f"max_length: {max_length} is more than the checkpoint's {longest}")
    return RenderRules(
        template=template,
        max_length=max_length,
        score_position=_settle("score_position", settings.score_position, claims.score_position, _position(config)),
        eos=_settle("eos", settings.eos, claims.eos),
        unfinished=_settle("unfinished", settings.unfinished or claims.unfinished, None),
        pad_token_id=config.get("pad_token_id"),
    )


def _settle(key: str, declared: _Claim | None, claimed: _Claim | None, inferred: _Claim | None = None) -> _Claim:
    """Return the value of `key`: declared and claimed must agree, and an inferred value comes last."""
    if declared is not None and claimed is not None and declared != claimed:
        raise StartError(f"{key}: declared {declared!r}, but the checkpoint's manifest says {claimed!r}")
    for value in (declared, claimed, inferred):
        if value is not None:
            return value
    raise StartError(f"{key}: declare it; the checkpoint has no manifest that says it, and it cannot be inferred")


def _position(config: Mapping[str, Any]) -> ScorePosition | None:
    """Return where transformers' own classifier of this architecture reads, if the checkpoint is one."""
    architecture = (config.get("architectures") or [""])[0]
    if not architecture.endswith("ForSequenceClassification"):
        return None
    if (known := ARCHITECTURES.get(config.get("model_type", ""))) is not None and known.dense is not None:
        return "pooler"
    return "last_token" if config.get("pad_token_id") is None else "last_non_pad_id"


def _dtype(config: Mapping[str, Any]) -> str:
    """Return the checkpoint's own dtype; float32 where it names none."""
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype not in DTYPES:
        raise StartError(f"dtype: {dtype!r} is not served; declare float32, bfloat16 or float16")
    return str(dtype)


def _moments(settings: SignalSettings, claims: Manifest) -> Moments | None:
    """Return mean and standard deviation, declared or claimed; None where one of them is neither."""
    mean = claims.mean if settings.mean is None else settings.mean
    std = claims.std if settings.std is None else settings.std
    return None if mean is None or std is None else Moments(mean, std)
