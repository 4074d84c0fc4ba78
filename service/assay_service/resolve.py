"""Decide how every signal is served from the configuration and the checkpoints' JSON files, before torch is imported.

A value is what the configuration declares, else what the checkpoint's manifest claims, else what the checkpoint's own
files make certain. Where none of them says it, the service does not start. What both say must agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from assay_service.advice import advice
from assay_service.errors import Problems, StartError
from assay_service.scoring import files, manifest
from assay_service.scoring.architectures import ARCHITECTURES, architecture_of, longest_sequence
from assay_service.scoring.manifest import EosPolicy, Kind, Manifest, ScorePosition, Unfinished
from assay_service.scoring.mix import Moments
from assay_service.scoring.rules import RenderRules
from assay_service.scoring.template import read_template
from assay_service.settings import BlendSettings, Settings, SignalSettings, allowed_values, parse

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
        StartError: with everything that is wrong, by signal and key or file.
    """
    found = Problems()
    resolved = _resolve_all(settings.signals, settings.directory, found)
    _check_blends(settings.blends, resolved, found)
    found.raise_any()
    return resolved


def read_resolved(raw: object, directory: Path, source: str) -> tuple[Settings, dict[str, ResolvedSignal]]:
    """Return a checked configuration and its resolved signals.

    Args:
        raw: what the YAML file holds.
        directory: where relative paths start.
        source: what to call the configuration in errors.

    Raises:
        StartError: with everything that is wrong in the configuration and in the JSON files of its checkpoints.
    """
    parsed = parse(raw, directory)
    found = Problems()
    found.lines += parsed.problems
    reported = tuple(": ".join([*line.split(": ")[:2], ""]) for line in parsed.problems)
    in_files = Problems()
    resolved = _resolve_all(parsed.signals, directory, in_files)
    if parsed.settings is not None:
        _check_blends(parsed.settings.blends, resolved, in_files)
    # A key with a wrong value counts as not declared; that it is missing is not said again.
    found.lines += [line for line in in_files.lines if not line.startswith(reported)]
    found.raise_any(source)
    assert parsed.settings is not None
    return parsed.settings, resolved


def _resolve_all(signals: Mapping[str, SignalSettings], directory: Path, found: Problems) -> dict[str, ResolvedSignal]:
    resolved = {}
    for name, signal in signals.items():
        with found.collected(f"signals.{name}"):
            resolved[name] = resolve_signal(signal, directory)
    return resolved


def _check_blends(blends: Mapping[str, BlendSettings], resolved: Mapping[str, ResolvedSignal], found: Problems) -> None:
    """Collect blends that standardise signals whose mean and standard deviation are not known."""
    for name, blend in blends.items():
        for signal in blend.weights if blend.standardise == "manifest" else ():
            if signal in resolved and resolved[signal].moments is None:
                found.lines.append(
                    f"blends.{name}: standardise needs mean and std of {signal!r}, and neither the configuration "
                    f"nor the manifest has them: declare signals.{signal}.mean and .std, or `standardise: none`"
                )


@dataclass(frozen=True, slots=True)
class SignalFiles:
    """The files of a signal, and what their JSON says.

    Attributes:
        base: directory of the base.
        adapter: directory of the adapter; None serves the base's own head.
        tokenizer: directory of the tokenizer's files.
        config: the base's `config.json`.
        claims: the checkpoint's manifest.
    """

    base: Path
    adapter: Path | None
    tokenizer: Path
    config: Mapping[str, Any]
    claims: Manifest

    @property
    def checkpoint(self) -> Path:
        """The directory that has the head: the adapter's, else the base's."""
        return self.adapter or self.base


def locate(settings: SignalSettings, relative_to: Path) -> SignalFiles:
    """Find the files of a signal and read their JSON.

    Raises:
        StartError: naming every key that leads to no checkpoint.
    """
    found = Problems()
    with found.collected("base"):
        base = files.resolve(settings.base, settings.revision, relative_to)
    with found.collected("adapter"):
        adapter = None if settings.adapter is None else files.resolve(settings.adapter, None, relative_to)
    found.raise_any()
    with found.collected("base"):
        config = files.read_config(base)
    with found.collected():
        claims = manifest.read(adapter or base)
    found.raise_any()
    directory = adapter or base
    tokenizer = directory if (directory / "tokenizer.json").is_file() else base
    return SignalFiles(base, adapter, tokenizer, config, claims)


def resolve_signal(settings: SignalSettings, relative_to: Path) -> ResolvedSignal:
    """Decide how one signal is served.

    Raises:
        StartError: with everything that is wrong, by key or file.
    """
    located = locate(settings, relative_to)
    config, claims = located.config, located.claims
    declared = None if settings.template is None else relative_to / Path(settings.template).expanduser()
    found = Problems()
    with found.collected("base"):
        architecture_of(config, located.base)
    with found.collected("base"):
        files.weight_files(located.base)
    with found.collected():
        template = read_template(declared, located.checkpoint, located.tokenizer)
    with found.collected():
        dtype = settings.dtype or _dtype(config)
    with found.collected():
        kind: Kind = _settle("kind", settings.kind, claims.kind)
    with found.collected():
        max_length = _max_length(settings, claims, config)
    with found.collected():
        position: ScorePosition = _settle(
            "score_position", settings.score_position, claims.score_position, _position(config)
        )
    with found.collected():
        eos: EosPolicy = _settle("eos", settings.eos, claims.eos)
    with found.collected():
        unfinished: Unfinished = _settle("unfinished", settings.unfinished or claims.unfinished, None)
    found.raise_any()
    return ResolvedSignal(
        settings=settings,
        kind=kind,
        base=located.base,
        adapter=located.adapter,
        tokenizer=located.tokenizer,
        config=config,
        dtype=dtype,
        rules=RenderRules(
            template=template,
            max_length=max_length,
            score_position=position,
            eos=eos,
            unfinished=unfinished,
            pad_token_id=config.get("pad_token_id"),
        ),
        moments=_moments(settings, claims),
        claims=claims,
    )


def _max_length(settings: SignalSettings, claims: Manifest, config: Mapping[str, Any]) -> int:
    positions = longest_sequence(config)
    max_length = settings.max_length or claims.max_length or positions
    if not isinstance(max_length, int):
        raise StartError(f"max_length: declare it; neither the manifest nor config.json has it: {advice('max_length')}")
    longest = min(claims.max_length or max_length, positions or max_length)
    if max_length > longest:
        raise StartError(f"max_length: {max_length} is more than the checkpoint's {longest}; declare at most that")
    return max_length


def _settle(key: str, declared: _Claim | None, claimed: _Claim | None, inferred: _Claim | None = None) -> _Claim:
    """Return the value of `key`: declared and claimed must agree, and an inferred value comes last."""
    if declared is not None and claimed is not None and declared != claimed:
        raise StartError(
            f"{key}: declared {declared!r}, but the checkpoint's manifest says {claimed!r}; remove the key"
        )
    for value in (declared, claimed, inferred):
        if value is not None:
            return value
    values = f", one of {', '.join(allowed)}" if (allowed := allowed_values(key)) else ""
    raise StartError(f"{key}: declare it{values}; no file of the checkpoint says it: {advice(key)}")


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
        raise StartError(f"dtype: config.json says {dtype!r}, which is not served; declare one of {', '.join(DTYPES)}")
    return str(dtype)


def _moments(settings: SignalSettings, claims: Manifest) -> Moments | None:
    """Return mean and standard deviation, declared or claimed; None where one of them is neither."""
    mean = claims.mean if settings.mean is None else settings.mean
    std = claims.std if settings.std is None else settings.std
    return None if mean is None or std is None else Moments(mean, std)
