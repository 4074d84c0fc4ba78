"""Decide how every signal is served, from the configuration and the checkpoints' JSON files, without torch.

All errors are collected and reported at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from assay_service import preset, preset_keys
from assay_service.compat_settings import NATIVE_PATHS, CompatSettings, WireName
from assay_service.errors import Problems, StartError
from assay_service.preset import PresetUse
from assay_service.scoring import files
from assay_service.scoring.architectures import read_architecture
from assay_service.scoring.blend import Moments
from assay_service.scoring.compute import Compute, Dtype
from assay_service.scoring.hashing import hash_files
from assay_service.scoring.head_rule import HeadRule, check_head, decide_gate, decide_output, select_claims
from assay_service.scoring.manifest import Kind, Manifest
from assay_service.scoring.quantization import Quantization, decide_quantization
from assay_service.scoring.reading import Aggregate
from assay_service.scoring.rules import RenderRules
from assay_service.scoring.special_tokens import read_special_tokens
from assay_service.settings import Settings, parse
from assay_service.signal_files import SignalFiles, find_layout, locate, read_declared_template
from assay_service.signal_rules import decide_aggregate, decide_moments, decide_numbers, decide_rules, settle
from assay_service.signal_settings import BlendSettings, SignalSettings


@dataclass(frozen=True, slots=True)
class ResolvedSignal:
    """A signal for which everything is decided that can be decided without its tensors.

    Attributes:
        settings: settings of the signal in the configuration.
        kind: meaning of the logit: a Bradley-Terry reward, or a quality in 0..1 after the sigmoid.
        base: directory of the base.
        model: name of the base in the configuration or in the adapter.
        revision: commit, tag or branch of a hub id; None for a directory.
        adapters: directories of LoRA adapters in the order in which they are applied; empty for the base's own head.
        tokenizer: directory of the tokenizer's files: the adapter's, if it has some, else the base's.
        config: the base's `config.json`.
        quantization: format of the base's quantized weights; None for plain weights.
        dtype: dtype of the base's weights.
        compute: numbers in which the base computes; `auto` is decided when it is loaded.
        rules: rules by which text becomes token ids.
        moments: mean and standard deviation of the logits; None where they are not known.
        claims: the checkpoint's manifest; of several outputs, the record of the one that the signal reads.
        head: part of the checkpoint's head that the signal reads.
        aggregate: rule that makes one logit of several steps; None if steps are not scored.
        preset: preset behind the signal; None if none is declared.
    """

    settings: SignalSettings
    kind: Kind
    base: Path
    model: str
    revision: str | None
    adapters: tuple[Path, ...]
    tokenizer: Path
    config: Mapping[str, Any]
    quantization: Quantization | None
    dtype: Dtype
    compute: Compute
    rules: RenderRules
    moments: Moments | None
    claims: Manifest
    head: HeadRule
    aggregate: Aggregate | None = None
    preset: PresetUse | None = None

    @property
    def adapter(self) -> Path | None:
        """Return the directory of the adapter that has the head; None where the base has the head."""
        return self.adapters[-1] if self.adapters else None

    @property
    def gguf(self) -> Path | None:
        """Return the GGUF file that has the base's weights; None where safetensors files have them."""
        is_gguf = self.quantization is not None and self.quantization.gguf_file is not None
        return self.weights[0] if is_gguf else None

    @property
    def weights(self) -> list[Path]:
        """Return the files of the base's weights, and of a value head beside them."""
        return files.list_weight_files(self.base, None if self.quantization is None else self.quantization.gguf_file)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what may make scores wrong although it was declared."""
        warnings: list[str] = []
        if self.preset is not None:
            warnings = preset_keys.list_warnings(self.preset, self.config, self.revision, self.base)
        known = "" if self.head.layout is None else " with the gated head that Assay recognized"
        if classes := files.list_code_classes(self.config):
            warnings.append(
                f"`code: ignore`: the code that config.json names ({', '.join(classes)}) is not run. If it computes "
                f"anything but transformers' own {self.config.get('model_type')!r}{known}, scores are wrong: compare "
                "them"
            )
        return tuple(warnings)


def resolve(settings: Settings) -> dict[str, ResolvedSignal]:
    """Decide how every signal of `settings` is served, and return the signals by name.

    Raises:
        StartError: a signal cannot be served; the error lists all problems by signal and key or file.
    """
    problems = Problems()
    resolved = _resolve_all(settings.signals, settings.directory, problems)
    _check_blends(settings.blends, resolved, problems)
    _check_compat(settings.compat, settings.directory, problems)
    problems.raise_any()
    return resolved


def read_resolved(raw: object, directory: Path, source: str | None) -> tuple[Settings, dict[str, ResolvedSignal]]:
    """Return a checked configuration and its resolved signals.

    Args:
        raw: content of the YAML file.
        directory: folder at which relative paths start.
        source: name of the configuration in errors; None names none.

    Raises:
        StartError: the configuration or a JSON file of its checkpoints is wrong; the error lists all problems.
    """
    parsed = parse(raw, directory)
    problems = Problems()
    problems.lines += parsed.problems
    reported = tuple(f"{key}: " for key in parsed.reported)
    in_files = Problems()
    resolved = _resolve_all(parsed.signals, directory, in_files)
    if parsed.settings is not None:  # else a blend's signal may be missing because of another error
        _check_blends(parsed.settings.blends, resolved, in_files)
        _check_compat(parsed.settings.compat, directory, in_files)
    # A key with a wrong value counts as not declared. The problem that it is missing would only repeat the first one.
    problems.lines += [line for line in in_files.lines if not line.startswith(reported)]
    problems.raise_any(source)
    # Only problems leave the settings empty, and those were raised.
    assert parsed.settings is not None
    return parsed.settings, resolved


def resolve_signal(settings: SignalSettings, relative_to: Path) -> ResolvedSignal:
    """Decide how one signal is served.

    Args:
        settings: settings of the signal.
        relative_to: folder at which relative paths start.

    Raises:
        StartError: the signal cannot be served; the error lists all problems by key or file.
    """
    located, problems = locate(settings, relative_to), Problems()
    config, gate = located.config, None
    # Each check has a block of its own, so that one wrong key does not hide the others.
    head, claims = _decide_head(settings, located, problems)
    with problems.collected("base"):
        read_architecture(config, located.base)
    with problems.collected():
        quantization = decide_quantization(settings.quantization, settings.gguf_file, config, located.base)
        with problems.collected("base"):
            head = replace(head, layout=find_layout(settings, located))
    with problems.collected():
        gate = decide_gate(None if settings.head is None else settings.head.gate, head.layout)
    template = read_declared_template(settings, located, relative_to, problems)
    with problems.collected():
        dtype, compute = decide_numbers(settings, claims, config)
    with problems.collected():
        kind: Kind = settle("kind", settings.kind, claims.kind)
    with problems.collected():
        rules = replace(decide_rules(settings, located, template), gate=gate)
        claimed = settings.kind or claims.kind
        check_head(head, rules.score_position, claimed, settings.engine, is_classifier=located.is_classifier)
    with problems.collected():
        moments = decide_moments(settings, claims, config)
    with problems.collected():
        aggregate = decide_aggregate(settings, claims)
    used = _settle_preset(settings, config, problems)
    return ResolvedSignal(
        settings=settings,
        kind=kind,
        base=located.base,
        model=located.model,
        revision=located.revision,
        adapters=located.adapters,
        tokenizer=located.tokenizer,
        config=config,
        quantization=quantization,
        dtype=dtype,
        compute=compute,
        rules=rules,
        moments=moments,
        claims=claims,
        head=head,
        aggregate=aggregate,
        preset=used,
    )


def _decide_head(settings: SignalSettings, located: SignalFiles, problems: Problems) -> tuple[HeadRule, Manifest]:
    """Return the part of the head that the signal reads, and what the manifest says about this part."""
    head, claims = HeadRule(), located.claims  # with which later checks go on if there is a problem
    with problems.collected():
        outputs = decide_output(settings.output, claims, located.config)
        head = HeadRule(outputs) if settings.head is None else settings.head.build_rule(outputs)
        claims = select_claims(claims, outputs)
    return head, claims


def _settle_preset(settings: SignalSettings, config: Mapping[str, Any], problems: Problems) -> PresetUse | None:
    """Raise the problems of a signal, or return the preset behind it; None if none is declared."""
    used = _find_preset(settings)
    if problems.lines and used is not None and (other := preset_keys.explain_other_class(used, config)):
        problems.lines.append(other)
    problems.raise_any()
    return used


def _find_preset(settings: SignalSettings) -> PresetUse | None:
    """Return the preset behind a signal and the keys that differ from it; None if none is declared."""
    if settings.preset is None:
        return None
    # Where the files lie changes nothing in a score, and is in the provenance anyway.
    plain = SignalSettings(preset=settings.preset, base=settings.base)
    differing = (key for key in SignalSettings.model_fields if getattr(settings, key) != getattr(plain, key))
    return preset.describe(settings.preset, tuple(key for key in differing if key not in {"base", "revision"}))


def _resolve_all(
    signals: Mapping[str, SignalSettings], directory: Path, problems: Problems
) -> dict[str, ResolvedSignal]:
    resolved = {}
    for name, signal in signals.items():
        with problems.collected(f"signals.{name}"):
            resolved[name] = resolve_signal(signal, directory)
    return resolved


def _check_blends(
    blends: Mapping[str, BlendSettings], resolved: Mapping[str, ResolvedSignal], problems: Problems
) -> None:
    """Collect the problems of blends: unknown moments where logits are standardised, and unequal counts of tokens."""
    for name, blend in blends.items():
        _check_length_penalty(name, blend, resolved, problems)
        for signal in blend.weights if blend.standardise == "manifest" else ():
            if signal in resolved and resolved[signal].moments is None:
                problems.lines.append(
                    f"blends.{name}: standardise needs mean and std of {signal!r}, and neither the configuration "
                    f"nor the manifest has them: declare signals.{signal}.mean and .std, or `standardise: none`"
                )


def _check_compat(compat: CompatSettings, directory: Path, problems: Problems) -> None:
    """Collect the problems of wires: one at the root that has paths of Assay's own, and policies that do not exist."""
    for wire in get_args(WireName):
        policy = compat.get_wire(wire).policy
        with problems.collected(f"compat.wires.{wire}.policy"):
            if policy is not None and not (path := files.place(policy, directory)).is_dir():
                raise StartError(f"{policy}: no such directory; looked at {path.resolve()}; correct the path")
    if compat.root is not None and compat.root in NATIVE_PATHS:
        problems.lines.append(
            f"compat.root: {compat.root} cannot be served at the root, because Assay itself serves "
            f"{', '.join(NATIVE_PATHS[compat.root])}; use the base URL http://HOST:PORT/compat/{compat.root}"
        )


def _check_length_penalty(
    name: str, blend: BlendSettings, resolved: Mapping[str, ResolvedSignal], problems: Problems
) -> None:
    """Collect a problem if a blend's penalty does not say which tokens count, and its signals may count differently."""
    penalty = blend.length_penalty
    # A signal that could not be resolved has its own problem already.
    known = [signal for signal in blend.weights if signal in resolved]
    if penalty is None or penalty.signal is not None or len(known) < len(blend.weights):
        return
    first, *others = known
    for other in others:
        if _describe_counting(resolved[first]) != _describe_counting(resolved[other]):
            problems.lines.append(
                f"blends.{name}: length_penalty.signal: {first!r} and {other!r} do not have the same tokenizer, "
                "template and eos, so that they may count different numbers of tokens: declare one of "
                + ", ".join(blend.weights)
            )
            return


def _describe_counting(signal: ResolvedSignal) -> tuple[object, ...]:
    """Return everything that decides how many tokens a completion has."""
    # By content: two directories may hold the same tokenizer.
    tokenizer_sha256 = hash_files([signal.tokenizer / files.TOKENIZER_FILE])
    # A template prints special tokens by their names, so that names decide tokens as well.
    named = read_special_tokens(signal.tokenizer).named
    return tokenizer_sha256, named, signal.rules.template, signal.rules.eos
