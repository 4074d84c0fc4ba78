"""Inspect a checkpoint's directory without torch, and write the YAML that serves it.

The report says what the directory is, which keys are certain, and which must be declared. `assay serve DIR` and
`assay inspect DIR` build the same declaration, and `resolve.py` decides its keys for both.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import yaml

from assay_service.advice import get_advice
from assay_service.declaration import build_declaration
from assay_service.errors import StartError
from assay_service.preset_keys import find_matching
from assay_service.resolve import ResolvedSignal
from assay_service.scoring import files, names, pads
from assay_service.scoring.gguf_header import HEAD as GGUF_HEAD
from assay_service.scoring.gguf_header import GgufHeader, read_gguf_header
from assay_service.scoring.missing_head import explain_several, why_no_head
from assay_service.scoring.quantization import list_gguf_files, read_method
from assay_service.scoring.special_tokens import TOKENIZER_CONFIG, read_optional, read_special_tokens
from assay_service.scoring.template_files import read_template
from assay_service.settings import parse
from assay_service.signal_files import SignalFiles
from assay_service.signal_settings import SignalSettings
from assay_service.undeclared import (
    describe_gated,
    find_undeclared,
    is_gated,
    list_head_files,
    list_heads,
    list_values,
    read_shapes,
    reads_as_language_model,
)

# What stands for a value that cannot be listed.
_FORMS: Mapping[str, str] = {
    "max_length": "a number",
    "output": "a number or a name",
    "pad_token_id": "a number",
    "steps": "{delimiter: TEXT, token: TEXT}",
    "template": "a file",
}


# Keys whose value may come from `config.json`.
_IN_CONFIG = ("dtype", "max_length", "score_position", "pad_token_id")


@dataclass(frozen=True, slots=True)
class Inspection:
    """The report on a directory.

    Attributes:
        text: a YAML file: the report as comments, and below it the configuration.
        problems: reasons why the directory cannot be served, whatever is declared.
    """

    text: str
    problems: tuple[str, ...]


def inspect(directory: Path, declared: Mapping[str, object]) -> Inspection:
    """Return a report on a directory, and the YAML that serves it.

    Args:
        directory: a whole model, a LoRA adapter, or a training run with its `checkpoint`.
        declared: keys of the signal; a key that is None counts as not declared.

    Raises:
        StartError: the directory does not hold a checkpoint, or a declared value is wrong in itself.
    """
    raw = build_declaration(directory, declared)
    name = next(iter(raw["signals"]))  # several differ by their output only
    parsed = parse(raw, Path.cwd())
    if parsed.settings is None:
        raise StartError(*parsed.problems)
    signal = parsed.signals[name]
    undeclared = find_undeclared(signal)
    located, missing, resolved = undeclared.files, undeclared.keys, undeclared.resolved
    problems = (
        *undeclared.problems,
        *_find_broken_files(located, signal.gguf_file, reads_rows=signal.head is not None or "head" in missing),
    )
    lines = [f"{located.checkpoint}: {'a LoRA adapter' if located.adapter else 'a whole model'}"]
    lines += [f"  {name:<15} {value}" for name, value in _list_facts(located, _read_template(signal, located))]
    if resolved is not None:
        lines += [
            f"  {key:<15} {value} (certain: {source})" for key, value, source in _list_certain_keys(resolved, missing)
        ]
    lines += [f"  problem         {problem}" for problem in problems]
    if signal.preset is None:
        matching = find_matching(located.checkpoint, located.config)
        lines += [
            f"  preset          {name} may be for it, by the directory's name: --preset {name}" for name in matching
        ]
    if missing:
        lines.append("Fill in the empty keys below.")
    comments = "".join(f"# {line}\n" for line in lines)
    signals = {name: {**_get_base_keys(located), **keys} for name, keys in raw["signals"].items()}
    return Inspection(comments + _format_yaml(signals, missing, located), problems)


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
    paths = list_head_files(located)
    if paths or not list_gguf_files(located.base):
        yield "size", f"{sum(path.stat().st_size for path in paths) / 1e6:.1f} MB in {len(paths)} safetensors files"
    if (method := read_method(config, located.base)) is not None:
        yield "quantization", f"{method}, by config.json"
    for header in _read_gguf_headers(located):
        yield "gguf", header.message if isinstance(header, StartError) else _describe_gguf(header)
    yield "head", _describe_heads(located)
    if outputs := located.claims.outputs:
        yield "outputs", ", ".join(f"{output.name} ({output.kind})" for output in outputs)
    yield "template", f"{len(template)} characters" if template else "none"
    yield "tokenizer", f"{located.tokenizer}, {_read_tokenizer_class(located.tokenizer)}"
    yield "pads", f"config.json {config.get('pad_token_id')}, tokenizer {_describe_pad(located.tokenizer)}"
    text = read_special_tokens(located.tokenizer).named.get("eos_token")
    # A template prints EOS as text or by the variable `eos_token`.
    prints = text is not None and (text in template or "eos_token" in template)
    yield "eos", f"tokenizer {text!r}, which the template {'names' if prints else 'does not name'}"
    yield "manifest", "assay.json" if (located.checkpoint / "assay.json").is_file() else "none"


def _read_gguf_headers(located: SignalFiles) -> Iterator[GgufHeader | StartError]:
    """Yield the header of each GGUF file of the base, or what is wrong with the file."""
    for name in list_gguf_files(located.base):
        try:
            yield read_gguf_header(located.base / name)
        except StartError as error:
            yield error


def _describe_gguf(header: GgufHeader) -> str:
    """Return name, architecture and types of a GGUF file, and its size as it is and in a dtype of two bytes."""
    values = sum(prod(tensor.shape) for tensor in header.tensors.values())
    return (
        f"{header.path.name}, {header.architecture} in {', '.join(header.types)}, "
        f"{header.path.stat().st_size / 1e6:.1f} MB, in bfloat16 {2 * values / 1e6:.1f} MB"
    )


def _describe_pad(tokenizer: Path) -> str:
    """Return id and text of a tokenizer's pad token, or the reason why it has none."""
    try:
        pad = pads.pad_token(tokenizer, tokenizer)
    except StartError as error:
        return error.message
    return "none" if pad is None else f"{pad[0]} ({pad[1]!r})"


def _describe_heads(located: SignalFiles) -> str:
    """Return name and shape of every head in the checkpoint, what a gated head consists of, or that there is none."""
    if is_gated(located):
        return describe_gated(located)
    heads = list_heads(located)
    if not heads and reads_as_language_model(located):
        return "none; its base is a language model, whose output layer can be read"
    found = [f"{name} {list(shape)}" for name, shape in heads.items()]
    if located.adapter is None:
        whole = [header for header in _read_gguf_headers(located) if isinstance(header, GgufHeader)]
        found += [f"{GGUF_HEAD} {list(h.tensors[GGUF_HEAD].shape)}" for h in whole if GGUF_HEAD in h.tensors]
    return ", ".join(found) or "none"


def _find_broken_files(located: SignalFiles, gguf_file: str | None, *, reads_rows: bool) -> Iterator[str]:
    """Yield the faults of files that would stop loading; no declaration can help there.

    Args:
        located: files of the signal.
        gguf_file: name of the declared GGUF file; None if none is declared, so that any may be meant.
        reads_rows: whether the signal reads a language model's output layer, so that it needs no head.
    """
    paths, heads = list_head_files(located), list_heads(located)
    if paths and not reads_rows and not heads and not is_gated(located):
        yield f"{located.checkpoint}: {why_no_head(read_shapes(located), located.config, located.checkpoint)}"
    if len(heads) > 1 and not reads_rows:
        yield f"{located.checkpoint}: {explain_several(heads)}"
    # Without an adapter the checkpoint is the base, and each path would come twice.
    for path in dict.fromkeys([*paths, *sorted(located.base.glob("*.safetensors"))]):
        if (missing := names.count_missing_bytes(path)) > 0:
            yield f"{path}: the last {missing} bytes are missing; download or save it again"
    broken = [header.message for header in _read_gguf_headers(located) if isinstance(header, StartError)]
    yield from (message for message in broken if message.startswith(str(located.base / (gguf_file or ""))))
    try:
        files.read_json(located.tokenizer / files.TOKENIZER_FILE)
    except StartError as error:
        yield error.message


def _list_certain_keys(resolved: ResolvedSignal, missing: Sequence[str]) -> Iterator[tuple[str, object, str]]:
    """Yield key, value and source file of each key that need not be declared."""
    for key in SignalSettings.model_fields:
        value = getattr(resolved.rules, key, None) if hasattr(resolved.rules, key) else getattr(resolved, key, None)
        claimed = getattr(resolved.claims, key, None) is not None
        if key in missing or key in resolved.settings.model_fields_set or not isinstance(value, (str, int, float)):
            continue
        # Of several outputs each has a kind of its own. Other values are defaults of the service.
        if (claimed and not (key == "kind" and resolved.claims.outputs)) or key in _IN_CONFIG:
            yield key, value, "assay.json" if claimed else "config.json"


def _format_yaml(signals: Mapping[str, Mapping[str, object]], missing: Sequence[str], located: SignalFiles) -> str:
    """Return the configuration of signals that lack the same keys."""
    head = ("{gate: TEXT}", "head") if is_gated(located) else ("{tokens: [TOKEN, TOKEN]}", "head.tokens")
    text = "signals:\n"
    for name, keys in signals.items():
        text += textwrap.indent(yaml.safe_dump({name: dict(keys)}, sort_keys=False, allow_unicode=True), "  ")
        for key in missing:  # as text, because yaml.safe_dump writes no comments
            form = _FORMS.get(key) or ", ".join(list_values(key, located))
            values, advised = head if key == "head" else (form, key)
            text += f"    # {values}: {get_advice(advised)}\n    {key}:\n"
    return text + (yaml.safe_dump({"default": next(iter(signals))}) if len(signals) > 1 else "")


def _read_tokenizer_class(directory: Path) -> str:
    return str(read_optional(directory, TOKENIZER_CONFIG).get("tokenizer_class", "no class named"))


def _read_template(signal: SignalSettings, located: SignalFiles) -> str:
    """Return the chat template; "" where there is none, which the report lists among the problems."""
    try:
        declared = None if signal.template is None else files.place(signal.template, Path.cwd())
        return read_template(declared, located.checkpoint, located.tokenizer, signal.template_name)
    except StartError:
        return ""
