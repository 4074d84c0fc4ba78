"""Inspect a checkpoint's directory without torch, and write the YAML that serves it.

The report says what the directory is, which keys are certain, and which must be declared. `assay serve DIR` and
`assay inspect DIR` build the same declaration, and `resolve.py` decides its keys for both.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from assay_service.advice import get_advice
from assay_service.errors import StartError
from assay_service.resolve import ResolvedSignal, resolve_signal
from assay_service.scoring import files, names, pads
from assay_service.scoring.head_layouts import recognize_layout
from assay_service.scoring.special_tokens import TOKENIZER_CONFIG, read_optional, read_special_tokens
from assay_service.scoring.template_files import NO_TEMPLATE, read_template
from assay_service.settings import list_allowed_values, parse
from assay_service.signal_files import SignalFiles, locate
from assay_service.signal_settings import HeadSettings, SignalSettings
from assay_service.validation import NAME_PATTERN

# Values to try for keys whose values cannot be listed, and how the report shows such values.
_TRIALS: Mapping[str, object] = {"head": HeadSettings(gate="the end of the prompt")}
_FORMS = {"head": "{gate: TEXT}", "template": "a file"}


@dataclass(frozen=True, slots=True)
class Inspection:
    """The report on a directory.

    Attributes:
        text: a YAML file: the report as comments, and below it the configuration.
        problems: reasons why the directory cannot be served, whatever is declared.
    """

    text: str
    problems: tuple[str, ...]


def build_declaration(directory: Path, declared: Mapping[str, object]) -> dict[str, Any]:
    """Build the configuration that serves a directory, as a YAML file would hold it, with absolute paths.

    Args:
        directory: a whole model, a LoRA adapter, or a training run with its `checkpoint`.
        declared: keys of the signal; a key that is None counts as not declared.

    Raises:
        StartError: the directory holds neither a model nor an adapter, or a whole model was given a base.
    """
    checkpoint = _find_checkpoint(directory)
    signal = {key: value for key, value in declared.items() if value is not None}
    if (checkpoint / files.ADAPTER_CONFIG).is_file():
        signal["adapter"] = str(checkpoint)
    elif (checkpoint / "config.json").is_file():
        if "base" in signal:
            raise StartError(f"{checkpoint}: is a whole model, which needs no base; remove --base")
        signal["base"] = str(checkpoint)
    else:
        gguf = (
            "; GGUF files are not read: use the safetensors files that they were made from"
            if any(checkpoint.glob("*.gguf"))
            else ""
        )
        raise StartError(
            f"{checkpoint}: holds neither a model (config.json) nor a LoRA adapter ({files.ADAPTER_CONFIG}){gguf}"
        )
    return {"signals": {_choose_name(directory.resolve()): signal}}


def inspect(directory: Path, declared: Mapping[str, object]) -> Inspection:
    """Return a report on a directory, and the YAML that serves it.

    Args:
        directory: a whole model, a LoRA adapter, or a training run with its `checkpoint`.
        declared: keys of the signal; a key that is None counts as not declared.

    Raises:
        StartError: the directory does not hold a checkpoint, or a declared value is wrong in itself.
    """
    raw = build_declaration(directory, declared)
    ((name, keys),) = raw["signals"].items()
    parsed = parse(raw, Path.cwd())
    if parsed.settings is None:
        raise StartError(*parsed.problems)
    signal = parsed.signals[name]
    located = locate(signal, Path.cwd())
    missing, resolved, problems = _find_missing_keys(signal)
    problems += tuple(_find_broken_files(located))
    lines = [f"{located.checkpoint}: {'a LoRA adapter' if located.adapter else 'a whole model'}"]
    lines += [f"  {name:<15} {value}" for name, value in _list_facts(located, _read_template(signal, located))]
    if resolved is not None:
        lines += [
            f"  {key:<15} {value} (certain: {source})" for key, value, source in _list_certain_keys(resolved, missing)
        ]
    lines += [f"  problem         {problem}" for problem in problems]
    if missing:
        lines.append("Fill in the empty keys below.")
    comments = "".join(f"# {line}\n" for line in lines)
    return Inspection(comments + _format_yaml(name, {**_get_base_keys(located), **keys}, missing), problems)


def _find_missing_keys(signal: SignalSettings) -> tuple[list[str], ResolvedSignal | None, tuple[str, ...]]:
    """Find the keys that must be declared, by trying values for them.

    Returns:
        The keys, the signal with arbitrary allowed values for them, and all other problems.
    """
    missing: list[str] = []
    trial = signal
    for _ in SignalSettings.model_fields:  # a value for one key may show that another one is missing
        try:
            return missing, resolve_signal(trial, Path.cwd()), ()
        except StartError as error:
            # Errors with ": declare it" are those that a declaration can fix; `signal_rules` writes them.
            keys = [line.partition(": declare it")[0] for line in error.problems if ": declare it" in line]
            values = {key: [_TRIALS[key]] if key in _TRIALS else list_allowed_values(key) for key in keys}
            fillable = {key: found[0] for key, found in values.items() if key not in missing and found}
            if not fillable:
                others = [line for line in error.problems if line.partition(":")[0] not in missing]
                # A template is a file, for which there is no value to try.
                if others and all(line.startswith("template: ") and NO_TEMPLATE in line for line in others):
                    return [*missing, "template"], None, ()
                return missing, None, tuple(others)
            missing += fillable
            trial = trial.model_copy(update=fillable)
    return missing, None, ()


def _find_checkpoint(directory: Path) -> Path:
    """Return the checkpoint's directory, which in a training run is the folder `checkpoint`."""
    if not directory.is_dir():
        raise StartError(f"{directory}: no such directory; looked at {directory.resolve()}")
    # A model may itself have a folder `checkpoint`, so the outer directory counts if it holds a model.
    inner = directory / "checkpoint"
    holds = any((directory / name).is_file() for name in ("config.json", files.ADAPTER_CONFIG))
    return (inner if inner.is_dir() and not holds else directory).resolve()


def _choose_name(directory: Path) -> str:
    """Return a served name: the name of the directory, or of the run that a directory `checkpoint` belongs to."""
    name = directory.parent.name if directory.name == "checkpoint" else directory.name
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:64]
    return plain if re.fullmatch(NAME_PATTERN, plain) else "reward"


def _get_base_keys(located: SignalFiles) -> dict[str, str]:
    """Return the keys that name the base, independent of the folder of the configuration."""
    if located.revision is not None:
        return {"base": located.model, "revision": located.revision}
    return {"base": str(located.base)}


def _list_facts(located: SignalFiles, template: str) -> Iterator[tuple[str, str]]:
    """Yield name and value of each fact of the report."""
    config = located.config
    if located.adapter is not None:
        yield "base", str(located.base)
    yield "architecture", f"{config.get('model_type')}, {', '.join(config.get('architectures') or ['no class named'])}"
    paths = sorted(located.checkpoint.glob("*.safetensors"))
    yield "size", f"{sum(path.stat().st_size for path in paths) / 1e6:.1f} MB in {len(paths)} safetensors files"
    yield "head", ", ".join(_list_heads(located)) or "none"
    yield "template", f"{len(template)} characters" if template else "none"
    yield "tokenizer", f"{located.tokenizer}, {_read_tokenizer_class(located.tokenizer)}"
    yield "pads", f"config.json {config.get('pad_token_id')}, tokenizer {_describe_pad(located.tokenizer)}"
    text = read_special_tokens(located.tokenizer).named.get("eos_token")
    # A template prints EOS as text or by the variable `eos_token`.
    prints = text is not None and (text in template or "eos_token" in template)
    yield "eos", f"tokenizer {text!r}, which the template {'names' if prints else 'does not name'}"
    yield "manifest", "assay.json" if (located.checkpoint / "assay.json").is_file() else "none"


def _describe_pad(tokenizer: Path) -> str:
    """Return id and text of a tokenizer's pad token, or the reason why it has none."""
    try:
        pad = pads.pad_token(tokenizer, tokenizer)
    except StartError as error:
        return error.message
    return "none" if pad is None else f"{pad[0]} ({pad[1]!r})"


def _list_heads(located: SignalFiles) -> list[str]:
    """Return name and shape of every head in the checkpoint that should have one, or what a gated head consists of."""
    shapes = names.read_shapes(sorted(located.checkpoint.glob("*.safetensors")))
    try:
        layout = None if located.adapters else recognize_layout(shapes, located.config, located.base)
    except StartError:  # `resolve_signal` reports it
        return ["a gated head that is not whole"]
    if layout is not None:
        return [layout.describe()]
    pattern = names.build_head_weight_pattern(located.config.get("value_head_prefix"))
    return [f"{name} {list(shape)}" for name, shape in shapes.items() if pattern.match(names.unwrap_name(name))]


def _find_broken_files(located: SignalFiles) -> Iterator[str]:
    """Yield the faults of files that would stop loading; no declaration can help there."""
    paths = sorted(located.checkpoint.glob("*.safetensors"))
    if paths and not _list_heads(located):
        yield f"{located.checkpoint}: {names.why_no_head(names.read_shapes(paths), located.checkpoint)}"
    # Without an adapter the checkpoint is the base, and each path would come twice.
    for path in dict.fromkeys([*paths, *sorted(located.base.glob("*.safetensors"))]):
        if (missing := names.count_missing_bytes(path)) > 0:
            yield f"{path}: the last {missing} bytes are missing; download or save it again"
    try:
        files.read_json(located.tokenizer / files.TOKENIZER_FILE)
    except StartError as error:
        yield error.message


def _list_certain_keys(resolved: ResolvedSignal, missing: list[str]) -> Iterator[tuple[str, object, str]]:
    """Yield key, value and source file of each key that need not be declared."""
    for key in SignalSettings.model_fields:
        value = getattr(resolved.rules, key, None) if hasattr(resolved.rules, key) else getattr(resolved, key, None)
        if key in missing or key in resolved.settings.model_fields_set or value is None or key == "template":
            continue
        if (
            value == SignalSettings.model_fields[key].default
        ):  # a default of the service, which no file of the checkpoint says
            continue
        if isinstance(value, (str, int, float)):
            yield key, value, "assay.json" if getattr(resolved.claims, key, None) is not None else "config.json"


def _format_yaml(name: str, keys: Mapping[str, object], missing: list[str]) -> str:
    lines = yaml.safe_dump({"signals": {name: dict(keys)}}, sort_keys=False, allow_unicode=True)
    for key in missing:  # as text, because yaml.safe_dump writes no comments
        form = _FORMS.get(key) or ", ".join(list_allowed_values(key))
        lines += f"    # {form}: {get_advice(key)}\n    {key}:\n"
    return lines


def _read_tokenizer_class(directory: Path) -> str:
    return str(read_optional(directory, TOKENIZER_CONFIG).get("tokenizer_class", "no class named"))


def _read_template(signal: SignalSettings, located: SignalFiles) -> str:
    """Return the chat template; "" where there is none, which the report lists among the problems."""
    try:
        declared = None if signal.template is None else files.place(signal.template, Path.cwd())
        return read_template(declared, located.checkpoint, located.tokenizer, signal.template_name)
    except StartError:
        return ""
