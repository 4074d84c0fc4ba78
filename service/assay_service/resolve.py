"""Decide how every signal is served from the configuration and the checkpoints' JSON files, before torch is imported.

Everything that is wrong is collected and reported at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay_service.errors import Problems
from assay_service.scoring import files
from assay_service.scoring.architectures import architecture_of
from assay_service.scoring.blend import Moments
from assay_service.scoring.manifest import Kind, Manifest
from assay_service.scoring.rules import RenderRules
from assay_service.scoring.template import read_template
from assay_service.settings import BlendSettings, Settings, SignalSettings, parse
from assay_service.signal_files import locate
from assay_service.signal_rules import decide_dtype, decide_moments, decide_rules, settle


@dataclass(frozen=True, slots=True)
class ResolvedSignal:
    """A signal with everything decided that needs no tensor.

    Attributes:
        settings: what the configuration declares.
        kind: what the logit means.
        base: directory of the base.
        model: the base as the configuration or the adapter names it.
        revision: commit, tag or branch of a hub id; None for files.
        adapters: directories of LoRA adapters in the order in which they are applied; none serves the base's own head.
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
    model: str
    revision: str | None
    adapters: tuple[Path, ...]
    tokenizer: Path
    config: Mapping[str, Any]
    dtype: str
    rules: RenderRules
    moments: Moments | None
    claims: Manifest

    @property
    def adapter(self) -> Path | None:
        """The adapter that has the head; None where the base has it."""
        return self.adapters[-1] if self.adapters else None


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
    reported = tuple(f"{key}: " for key in parsed.reported)
    in_files = Problems()
    resolved = _resolve_all(parsed.signals, directory, in_files)
    if parsed.settings is not None:
        _check_blends(parsed.settings.blends, resolved, in_files)
    # A key with a wrong value counts as not declared; that it is missing is not said again.
    found.lines += [line for line in in_files.lines if not line.startswith(reported)]
    found.raise_any(source)
    assert parsed.settings is not None
    return parsed.settings, resolved


def resolve_signal(settings: SignalSettings, relative_to: Path) -> ResolvedSignal:
    """Decide how one signal is served.

    Raises:
        StartError: with everything that is wrong, by key or file.
    """
    located = locate(settings, relative_to)
    config, claims = located.config, located.claims
    found, template, declared = Problems(), "", None
    with found.collected("base"):
        architecture_of(config, located.base)
    with found.collected("base"):
        files.weight_files(located.base)
    with found.collected("template"):
        declared = None if settings.template is None else files.place(settings.template, relative_to)
    with found.collected():
        template = read_template(declared, located.checkpoint, located.tokenizer, settings.template_name)
    with found.collected():
        dtype = settings.dtype or decide_dtype(config)
    with found.collected():
        kind: Kind = settle("kind", settings.kind, claims.kind)
    with found.collected():
        rules = decide_rules(settings, located, template)
    found.raise_any()
    return ResolvedSignal(
        settings=settings,
        kind=kind,
        base=located.base,
        model=located.model,
        revision=located.revision,
        adapters=located.adapters,
        tokenizer=located.tokenizer,
        config=config,
        dtype=dtype,
        rules=rules,
        moments=decide_moments(settings, claims),
        claims=claims,
    )


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
