"""Build the configuration that serves a directory or a preset, as a YAML file would hold it; without torch."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay_service.errors import StartError
from assay_service.scoring import files, manifest
from assay_service.scoring.quantization import list_gguf_files
from assay_service.validation import NAME_PATTERN
from assay_service.yaml_file import read_yaml


def build_declaration(directory: Path, declared: Mapping[str, object]) -> dict[str, Any]:
    """Build the configuration that serves a directory, as a YAML file would hold it, with absolute paths.

    A checkpoint whose manifest records several outputs has one signal for each of them.

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
            "; put config.json, tokenizer.json and tokenizer_config.json of the model that its GGUF files were made "
            "from beside them"
            if list_gguf_files(checkpoint)
            else "; name the directory of a checkpoint"
        )
        raise StartError(
            f"{checkpoint}: holds neither a model (config.json) nor a LoRA adapter ({files.ADAPTER_CONFIG}){gguf}"
        )
    outputs = () if "output" in signal else _list_outputs(checkpoint)
    if outputs:  # several heads on one trunk, each of which is a signal
        return {"signals": {name: {**signal, "output": name} for name in outputs}, "default": outputs[0]}
    return {"signals": {signal.get("preset") or _choose_name(directory.resolve()): signal}}


def read_declared(served: Path) -> tuple[Any, Path]:
    """Return the configuration of a directory or a YAML file, and the folder at which its relative paths start.

    Raises:
        StartError: the directory holds neither a model nor an adapter, or the file cannot be read.
    """
    if served.is_dir():
        return build_declaration(served, {}), Path.cwd()
    return read_yaml(served), served.resolve().parent


def declare_preset(declared: Mapping[str, object]) -> dict[str, Any]:
    """Build the configuration that serves the checkpoint of a preset from the hub, under the preset's name.

    Args:
        declared: keys of the signal, `preset` among them; a key that is None counts as not declared.
    """
    signal = {key: value for key, value in declared.items() if value is not None}
    return {"signals": {str(signal["preset"]): signal}}


def _find_checkpoint(directory: Path) -> Path:
    """Return the checkpoint's directory, which in a training run is the folder `checkpoint`."""
    if not directory.is_dir():
        raise StartError(f"{directory}: no such directory; looked at {directory.resolve()}; correct the path")
    # A model may itself have a folder `checkpoint`, so the outer directory counts if it holds a model.
    inner = directory / "checkpoint"
    holds = any((directory / name).is_file() for name in ("config.json", files.ADAPTER_CONFIG))
    return (inner if inner.is_dir() and not holds else directory).resolve()


def _list_outputs(checkpoint: Path) -> tuple[str, ...]:
    """Return the names of the outputs that a checkpoint's manifest records."""
    try:
        return tuple(output.name for output in manifest.read(checkpoint).outputs)
    except StartError:  # resolving the signal reports a broken manifest
        return ()


def _choose_name(directory: Path) -> str:
    """Return a served name: the name of the directory, or of the run that a directory `checkpoint` belongs to."""
    name = directory.parent.name if directory.name == "checkpoint" else directory.name
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:64]
    return plain if re.fullmatch(NAME_PATTERN, plain) else "reward"
