"""Read a checkpoint's directory without torch: what it is, what is certain, what must be declared, and the YAML.

`assay serve DIR` and `assay inspect DIR` go by the same declaration, and both settle it by `resolve.py`.
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from assay_service.advice import advice
from assay_service.errors import StartError
from assay_service.resolve import ResolvedSignal, SignalFiles, locate, resolve_signal
from assay_service.scoring import files
from assay_service.settings import SignalSettings, allowed_values, parse
from assay_service.validation import NAME_PATTERN

_HEADS = re.compile(r"(^|\.)(score|classifier|v_head|value_head|\w+_head)(\.[\w.]+)?\.weight$")
_NOT_HEADS = ("lm_head.", "base_model.model.lm_head.")


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
        signal = {**_base_of(found), **signal, "adapter": str(found)}
    elif (found / "config.json").is_file():
        if "base" in signal:
            raise StartError(f"{found}: a whole model, so it has no --base")
        signal["base"] = str(found)
    else:
        raise StartError(f"{found}: neither a model (config.json) nor a LoRA adapter ({files.ADAPTER_CONFIG})")
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
    lines = [f"{located.checkpoint}: {'a LoRA adapter' if located.adapter else 'a whole model'}"]
    lines += [f"  {what:<15} {said}" for what, said in _facts(located, signal.template)]
    if resolved is not None:
        lines += [f"  {key:<15} {value} (certain: {source})" for key, value, source in _certain(resolved, missing)]
    lines += [f"  problem         {problem}" for problem in problems]
    if missing:
        lines.append("Fill in the empty keys below.")
    comments = "".join(f"# {line}\n" for line in lines)
    return Inspection(comments + _yaml(name, keys, missing), problems)


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


def _base_of(adapter: Path) -> dict[str, str]:
    """Return the base that an adapter names: a directory or a hub id with its revision."""
    config = files.read_config(adapter, files.ADAPTER_CONFIG)
    reference = config.get("base_model_name_or_path")
    if not isinstance(reference, str) or not reference:
        raise StartError(f"{adapter}: {files.ADAPTER_CONFIG} names no base; declare it with --base")
    for start in (adapter, Path.cwd()):
        if (path := start / Path(reference).expanduser()).is_dir():
            return {"base": str(path.resolve())}
    revision = config.get("revision")
    return {"base": reference, **({"revision": revision} if isinstance(revision, str) else {})}


def _facts(located: SignalFiles, declared_template: str | None) -> Iterator[tuple[str, str]]:
    config = located.config
    if located.adapter is not None:
        yield "base", str(located.base)
    yield "architecture", f"{config.get('model_type')}, {', '.join(config.get('architectures') or ['no class named'])}"
    paths = sorted(located.checkpoint.glob("*.safetensors"))
    yield "size", f"{sum(path.stat().st_size for path in paths) / 1e6:.1f} MB in {len(paths)} safetensors files"
    heads = [f"{name} {shape}" for path in paths for name, shape in _shapes(path).items() if _is_head(name)]
    yield "head", ", ".join(heads) or "none found"
    own = (directory / "chat_template.jinja" for directory in (located.checkpoint, located.tokenizer))
    candidates = own if declared_template is None else [Path(declared_template).expanduser()]
    templates = [path for path in candidates if path.is_file()]
    tokens = _json(located.tokenizer / "tokenizer_config.json")
    inline = tokens.get("chat_template")
    yield "template", str(templates[0]) if templates else "tokenizer_config.json" if inline else "none"
    yield "tokenizer", f"{located.tokenizer}, {tokens.get('tokenizer_class', 'no class named')}"
    yield "pads", f"config.json {config.get('pad_token_id')}, tokenizer {_token(tokens.get('pad_token'))!r}"
    eos, text = _token(tokens.get("eos_token")), templates[0].read_text(encoding="utf-8") if templates else str(inline)
    prints = eos is not None and (eos in text or "eos_token" in text)
    yield "eos", f"tokenizer {eos!r}, which the template {'names' if prints else 'does not name'}"
    yield "manifest", "assay.json" if (located.checkpoint / "assay.json").is_file() else "none"


def _certain(resolved: ResolvedSignal, missing: list[str]) -> Iterator[tuple[str, object, str]]:
    """Yield the keys that need no declaration, with value and source."""
    for key in SignalSettings.model_fields:
        value = getattr(resolved.rules, key, None) if hasattr(resolved.rules, key) else getattr(resolved, key, None)
        if key in missing or key in resolved.settings.model_fields_set or value is None or key == "template":
            continue
        if isinstance(value, (str, int, float)):
            yield key, value, "assay.json" if getattr(resolved.claims, key, None) is not None else "config.json"


def _yaml(name: str, keys: Mapping[str, object], missing: list[str]) -> str:
    lines = yaml.safe_dump({"signals": {name: dict(keys)}}, sort_keys=False, allow_unicode=True)
    for key in missing:
        lines += f"    # {', '.join(allowed_values(key))}: {advice(key)}\n    {key}:\n"
    return lines


def _is_head(name: str) -> bool:
    return bool(_HEADS.search(name)) and not name.startswith(_NOT_HEADS)


def _shapes(path: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor of a safetensors file, from its header."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, 100_000_000)))  # the library's own bound
        return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise StartError(f"{path}: not a whole safetensors file ({error}); download or save it again") from error


def _token(value: object) -> str | None:
    """Return the text of a token as `tokenizer_config.json` has it: plain, or with its settings."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _json(path: Path) -> dict[str, Any]:
    return files.read_config(path.parent, path.name) if path.is_file() else {}
