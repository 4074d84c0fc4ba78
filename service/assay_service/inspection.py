"""Read a checkpoint's directory without torch: what it is, what is certain, what must be declared, and the YAML.

`assay serve DIR` and `assay inspect DIR` go by the same declaration, and both settle it by `resolve.py`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from assay_service.advice import advice
from assay_service.errors import StartError
from assay_service.resolve import ResolvedSignal, resolve_signal
from assay_service.scoring import files, names, pads
from assay_service.scoring.special_tokens import TOKENIZER_CONFIG, read_optional, read_special_tokens
from assay_service.scoring.template import read_template
from assay_service.settings import SignalSettings, allowed_values, parse
from assay_service.signal_files import SignalFiles, locate
from assay_service.validation import NAME_PATTERN


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a directory holds.

    Attributes:
        text: the report as comments, and below it the configuration: a YAML file as a whole.
        problems: why it cannot be served, whatever is declared.
    """

    text: str
    problems: tuple[str, ...]


def declaration(directory: Path, declared: Mapping[str, object]) -> dict[str, Any]:
    """Return the configuration that serves a directory, as a YAML file would hold it, with absolute paths.

    Args:
        directory: a whole model, a LoRA adapter, or a training run with its `checkpoint`.
        declared: keys of the signal; None is not declared.

    Raises:
        StartError: the directory holds none of these.
    """
    found = _checkpoint_in(directory)
    signal = {key: value for key, value in declared.items() if value is not None}
    if (found / files.ADAPTER_CONFIG).is_file():
        signal["adapter"] = str(found)
    elif (found / "config.json").is_file():
        if "base" in signal:
            raise StartError(f"{found}: a whole model, so it has no --base")
        signal["base"] = str(found)
    else:
        gguf = "; GGUF is not read: take the safetensors that it was made from" if any(found.glob("*.gguf")) else ""
        raise StartError(f"{found}: neither a model (config.json) nor a LoRA adapter ({files.ADAPTER_CONFIG}){gguf}")
    return {"signals": {_name_of(directory.resolve()): signal}}


def inspect(directory: Path, declared: Mapping[str, object]) -> Inspection:
    """Return what a directory holds and the YAML that serves it.

    Args:
        directory: as in `declaration`.
        declared: keys of the signal; None is not declared.

    Raises:
        StartError: the directory holds no checkpoint, or what is declared is wrong in itself.
    """
    raw = declaration(directory, declared)
    ((name, keys),) = raw["signals"].items()
    parsed = parse(raw, Path.cwd())
    if parsed.settings is None:
        raise StartError(*parsed.problems)
    signal = parsed.signals[name]
    located = locate(signal, Path.cwd())
    missing, resolved, problems = _settled(signal)
    problems += tuple(_broken(located))
    lines = [f"{located.checkpoint}: {'a LoRA adapter' if located.adapter else 'a whole model'}"]
    lines += [f"  {what:<15} {said}" for what, said in _facts(located, _template_of(signal, located))]
    if resolved is not None:
        lines += [f"  {key:<15} {value} (certain: {source})" for key, value, source in _certain(resolved, missing)]
    lines += [f"  problem         {problem}" for problem in problems]
    if missing:
        lines.append("Fill in the empty keys below.")
    comments = "".join(f"# {line}\n" for line in lines)
    return Inspection(comments + _yaml(name, {**_base_of(located), **keys}, missing), problems)


def _settled(signal: SignalSettings) -> tuple[list[str], ResolvedSignal | None, tuple[str, ...]]:
    """Return the keys that must be declared, the signal with any values for them, and what else is wrong."""
    missing: list[str] = []
    trial = signal
    for _ in SignalSettings.model_fields:  # a value may bring up the next key
        try:
            return missing, resolve_signal(trial, Path.cwd()), ()
        except StartError as error:
            keys = [line.partition(": declare it")[0] for line in error.problems if ": declare it" in line]
            fillable = {key: allowed_values(key)[0] for key in keys if key not in missing and allowed_values(key)}
            if not fillable:
                return missing, None, tuple(line for line in error.problems if line.partition(":")[0] not in missing)
            missing += fillable
            trial = trial.model_copy(update=fillable)
    return missing, None, ()


def _checkpoint_in(directory: Path) -> Path:
    """Return the checkpoint's directory; of a training run the one in it."""
    if not directory.is_dir():
        raise StartError(f"{directory}: no such directory; looked at {directory.resolve()}")
    inner = directory / "checkpoint"
    holds = any((directory / name).is_file() for name in ("config.json", files.ADAPTER_CONFIG))
    return (inner if inner.is_dir() and not holds else directory).resolve()


def _name_of(directory: Path) -> str:
    """Return a served name: the directory's, or of a run's `checkpoint` the run's."""
    name = directory.parent.name if directory.name == "checkpoint" else directory.name
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:64]
    return plain if re.fullmatch(NAME_PATTERN, plain) else "reward"


def _base_of(located: SignalFiles) -> dict[str, str]:
    """Return the keys that name the base, whatever the directory that the configuration will lie in."""
    if located.revision is not None:
        return {"base": located.model, "revision": located.revision}
    return {"base": str(located.base)}


def _facts(located: SignalFiles, template: str) -> Iterator[tuple[str, str]]:
    config = located.config
    if located.adapter is not None:
        yield "base", str(located.base)
    yield "architecture", f"{config.get('model_type')}, {', '.join(config.get('architectures') or ['no class named'])}"
    paths = sorted(located.checkpoint.glob("*.safetensors"))
    yield "size", f"{sum(path.stat().st_size for path in paths) / 1e6:.1f} MB in {len(paths)} safetensors files"
    yield "head", ", ".join(_heads_in(located)) or "none"
    yield "template", f"{len(template)} characters" if template else "none"
    yield "tokenizer", f"{located.tokenizer}, {_tokenizer_class(located.tokenizer)}"
    yield "pads", f"config.json {config.get('pad_token_id')}, tokenizer {_pad_in(located.tokenizer)}"
    text = read_special_tokens(located.tokenizer).named.get("eos_token")
    prints = text is not None and (text in template or "eos_token" in template)
    yield "eos", f"tokenizer {text!r}, which the template {'names' if prints else 'does not name'}"
    yield "manifest", "assay.json" if (located.checkpoint / "assay.json").is_file() else "none"


def _pad_in(tokenizer: Path) -> str:
    """Return id and text of a tokenizer's pad, or why it has none."""
    try:
        pad = pads.pad_token(tokenizer, tokenizer)
    except StartError as error:
        return error.message
    return "none" if pad is None else f"{pad[0]} ({pad[1]!r})"


def _heads_in(located: SignalFiles) -> list[str]:
    """Return name and shape of every head in the checkpoint that must have one."""
    shapes = names.shapes_of(sorted(located.checkpoint.glob("*.safetensors")))
    pattern = names.head_weight(located.config.get("value_head_prefix"))
    return [f"{name} {list(shape)}" for name, shape in shapes.items() if pattern.match(names.unwrapped(name))]


def _broken(located: SignalFiles) -> Iterator[str]:
    """Yield what is wrong with the files that loading would find: no declaration can help there."""
    paths = sorted(located.checkpoint.glob("*.safetensors"))
    if paths and not _heads_in(located):
        yield f"{located.checkpoint}: {names.why_no_head(names.shapes_of(paths))}"
    for path in dict.fromkeys([*paths, *sorted(located.base.glob("*.safetensors"))]):
        if (missing := names.missing_bytes(path)) > 0:
            yield f"{path}: the last {missing} bytes are missing; download or save it again"
    try:
        files.read_json(located.tokenizer / files.TOKENIZER_FILE)
    except StartError as error:
        yield error.message


def _certain(resolved: ResolvedSignal, missing: list[str]) -> Iterator[tuple[str, object, str]]:
    """Yield the keys that need no declaration, with value and source."""
    for key in SignalSettings.model_fields:
        value = getattr(resolved.rules, key, None) if hasattr(resolved.rules, key) else getattr(resolved, key, None)
        if key in missing or key in resolved.settings.model_fields_set or value is None or key == "template":
            continue
        if value == SignalSettings.model_fields[key].default:  # a policy of the service, which no file says
            continue
        if isinstance(value, (str, int, float)):
            yield key, value, "assay.json" if getattr(resolved.claims, key, None) is not None else "config.json"


def _yaml(name: str, keys: Mapping[str, object], missing: list[str]) -> str:
    lines = yaml.safe_dump({"signals": {name: dict(keys)}}, sort_keys=False, allow_unicode=True)
    for key in missing:
        lines += f"    # {', '.join(allowed_values(key))}: {advice(key)}\n    {key}:\n"
    return lines


def _tokenizer_class(directory: Path) -> str:
    return str(read_optional(directory, TOKENIZER_CONFIG).get("tokenizer_class", "no class named"))


def _template_of(signal: SignalSettings, located: SignalFiles) -> str:
    """Return the chat template; "" where there is none, which is one of the problems."""
    try:
        declared = None if signal.template is None else files.place(signal.template, Path.cwd())
        return read_template(declared, located.checkpoint, located.tokenizer, signal.template_name)
    except StartError:
        return ""
