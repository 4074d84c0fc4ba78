"""Find the files of a checkpoint and read its JSON configurations, without importing torch.

So a configuration can be checked as a whole before anything heavy is imported. No code of a checkpoint is ever
executed: `refuse_code` refuses a configuration that asks for remote code (CVE-2025-32434, CVE-2026-22807).
"""

import contextlib
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from assay_service.errors import StartError
from assay_service.scoring.architectures import ARCHITECTURES
from assay_service.scoring.packages import find_package_directory

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_FILE = "tokenizer.json"
# Vocabularies in other formats, each with the library that reads it. None of them defines every step from text to ids,
# so ids read from them could differ from those of training.
_OTHER_TOKENIZERS = {
    "tokenizer.model": "SentencePiece or tiktoken",
    "spiece.model": "SentencePiece",
    "spm.model": "SentencePiece",
    "sentencepiece.bpe.model": "SentencePiece",
    "*.tiktoken": "tiktoken",
    "tiktoken.model": "tiktoken",
    "tekken.json": "mistral-common",
    "vocab.json": "transformers' Python tokenizers",
    "vocab.txt": "transformers' Python tokenizers",
    "added_tokens.json": "transformers' Python tokenizers",
}
VALUE_HEAD = "value_head.safetensors"
PACKAGE_SCHEME = "package:"
# Pickles that lie beside weights without being weights.
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "trainer_state", "value_head", "adapter_model")
# Types of the values that are read from a checkpoint's JSON; null counts as absent. transformers checks other keys.
_TYPES: Mapping[str, tuple[type, str]] = {
    **dict.fromkeys(("model_type", "value_head_prefix", "dtype", "torch_dtype", "pooler_hidden_act"), (str, "text")),
    **dict.fromkeys(("classifier_activation", "classifier_pooling"), (str, "text")),
    "norm_eps": (float, "a number"),
    **dict.fromkeys(("base_model_name_or_path", "revision", "task_type", "peft_type"), (str, "text")),
    **dict.fromkeys(("pad_token_id", "max_position_embeddings", "type_vocab_size"), (int, "a whole number")),
    **dict.fromkeys(("rope_scaling", "rope_parameters", "weight_map"), (dict, "a mapping (a JSON object)")),
    "quantization_config": (dict, "a mapping (a JSON object)"),
    "architectures": (list, "a list of texts"),
}
# Beside weights, which are safetensors or GGUF, so that no pickle reaches this machine.
_HUB_FILES = ("*.json", "*.jinja", "*.model", "*.txt")


def resolve(reference: str, revision: str | None, relative_to: Path, gguf_file: str | None = None) -> Path:
    """Return the directory that a base or adapter reference names.

    Args:
        reference: path, `package:NAME` for weights that a Python package contains, or hub id.
        revision: commit, tag or branch of a hub id; None for the other kinds.
        relative_to: directory where a relative path starts.
        gguf_file: name of the file that has the weights, for a hub id; None downloads the safetensors files.

    Raises:
        StartError: the directory or package does not exist, a hub id has no revision, or the hub cannot be reached.
    """
    path = place(reference, relative_to)
    if revision is not None and (path.is_dir() or reference.startswith(PACKAGE_SCHEME)):
        raise StartError(
            f"{reference}: only a hub id has a `revision`; remove it, since files are identified by their hash"
        )
    if reference.startswith(PACKAGE_SCHEME):
        if gguf_file is not None:
            raise StartError(f"{reference}: `gguf_file` is for directories and hub ids; remove it")
        return find_package_directory(reference.removeprefix(PACKAGE_SCHEME))
    if path.is_dir():
        return path.resolve()
    if reference.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", reference):
        raise StartError(f"{reference}: no such directory; looked at {path.resolve()}; correct the path")
    if revision is None:
        raise StartError(
            f"{reference}: no such directory; looked at {path.resolve()}; if it is a hub id, declare its `revision`"
        )
    try:
        weights = ("*.safetensors",) if gguf_file is None else (gguf_file, VALUE_HEAD)
        return Path(snapshot_download(reference, revision=revision, allow_patterns=[*weights, *_HUB_FILES]))
    except (OSError, ValueError) as error:  # ValueError: an id that no repository can have
        raise StartError(
            f"{reference} at {revision}: cannot be downloaded: {error}; check id, revision and network, or declare the "
            "directory of a download"
        ) from error


def place(reference: str, relative_to: Path) -> Path:
    """Return the path that a text names, whether or not it exists. `~` is the home directory.

    Raises:
        StartError: no file can have this path, or it cannot be accessed.
    """
    try:
        path = relative_to / Path(reference).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, ValueError, RuntimeError) as error:  # a long name; a null character; the home of an unknown user
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"{reference[:80]!r}: not a path that can be read: {reason}; correct the path") from error
    return path


def find_tokenizer_directory(base: Path, *adapters: Path) -> Path:
    """Return the directory whose `tokenizer.json` turns a signal's text into ids: the last adapter's, else the base's.

    Raises:
        StartError: there is none, or the adapter has a tokenizer in a format that is not read. Its tokens may differ
            from the base's.
    """
    for directory in (*reversed(adapters), base):
        if (directory / TOKENIZER_FILE).is_file():
            return directory
        others = [(path, by) for name, by in _OTHER_TOKENIZERS.items() for path in sorted(directory.glob(name))]
        if others:
            path, by = others[0]
            raise StartError(
                f"{directory}: has no {TOKENIZER_FILE}; Assay does not read {path.name}, the format of {by}. "
                "Create the file with "
                '`pip install sentencepiece protobuf tiktoken; python -c "from transformers import AutoTokenizer as T; '
                f"T.from_pretrained('{directory}').save_pretrained('{directory}')\"`"
                + (f", or delete {path.name} if the adapter has the base's tokenizer" if directory != base else "")
            )
    raise StartError(f"{base}: has no {TOKENIZER_FILE}; copy it from the model that the base was made from")


def list_weight_files(directory: Path, gguf_file: str | None = None) -> list[Path]:
    """Return the files of a full model's weights: one file, `gguf_file` or shards, and a value head's own file.

    Raises:
        StartError: there are none, or a shard is missing; pickled weights are named, not read.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if gguf_file is not None:
        files = [directory / gguf_file]
    elif single.is_file():
        files = [single]
    elif index.is_file():
        shards = read_config(directory, index.name).get("weight_map", {})
        files = [directory / name for name in sorted(set(shards.values()))]
    else:
        raise StartError(
            f"{directory}: has neither model.safetensors nor its index"
            f"{explain_pickled(directory, single.name) or '; download the checkpoint again'}"
        )
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        raise StartError(
            f"{directory}: {missing[0] if missing else 'every shard'} is missing; download the checkpoint again"
        )
    return [*files, *find_value_head_files(directory)]


# transformers would load the files that these keys name, in place of the weights and of the configuration itself.
_OTHER_FILES = frozenset({"transformers_weights", "configuration_files"})


def read_config(directory: Path, file_name: str = "config.json") -> dict[str, Any]:
    """Return the JSON configuration of a checkpoint.

    Raises:
        StartError: it is missing or malformed, a key has a value of another type, or a key names other files.
    """
    path = directory / file_name
    if not path.is_file():
        raise StartError(f"{path}: no such file{_explain_instead(directory, file_name)}")
    config = read_json(path)
    # In Python True is an int, but in a configuration it is a wrong number.
    for key, (kind, words) in _TYPES.items():
        value = config.get(key)
        right = isinstance(value, kind) and not isinstance(value, bool)
        if isinstance(value, list):
            right = right and all(isinstance(entry, str) for entry in value)
        if value is not None and not right:
            raise StartError(f"{path}: {key} must be {words}, not {json.dumps(value)[:60]}; correct the file")
    for key in _OTHER_FILES & config.keys():
        raise StartError(f"{path}: {key} names files that Assay neither checks nor hashes; remove the key")
    return config


def find_pickles(directory: Path, wanted: str) -> list[Path]:
    """Return the pickles that hold the weights of `wanted`, sorted by name; training states are skipped.

    Args:
        directory: directory of the checkpoint.
        wanted: name of the safetensors file that is missing.
    """
    stem = "pytorch_model" if wanted == "model.safetensors" else wanted.removesuffix(".safetensors")
    pickles = sorted(directory.glob(f"{stem}*.bin"))
    if not pickles and wanted == "model.safetensors":
        others = (path for path in directory.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".pkl"})
        pickles = sorted(path for path in others if not path.name.startswith(_NOT_WEIGHTS))
    return pickles


def explain_pickled(directory: Path, wanted: str) -> str:
    """Explain how to convert pickled weights in the place of `wanted`; "" if there are none.

    Args:
        directory: directory of the checkpoint.
        wanted: name of the safetensors file that is missing.
    """
    pickles = find_pickles(directory, wanted)
    if not pickles:
        return ""
    target = directory.with_name(f"{directory.name}-converted")
    return (
        f"; {pickles[0].name} is a pickle and is not read, because reading one can run code. "
        f"Convert it once: assay convert {shlex.quote(str(directory))} {shlex.quote(str(target))}"
    )


def refuse_code(config: Mapping[str, Any], path: Path, *, ignored: bool = False) -> None:
    """Refuse a JSON configuration that asks for remote code.

    Args:
        config: parsed content of the file.
        path: file that holds it, for errors.
        ignored: whether the user declared `code: ignore`. The code is not run then, either.

    Raises:
        StartError: there is an `auto_map`, and it is not ignored or cannot be.
    """
    if "auto_map" not in config:
        return
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        why = f" (its architecture, {model_type!r}, is not served without that code)" if model_type else ""
        raise StartError(
            f"{path}: `auto_map` asks for remote code, which Assay never runs{why}; remove `auto_map` from a copy of "
            "the file if the model does not need it"
        )
    if not ignored:
        raise StartError(
            f"{path}: `auto_map` asks for remote code ({', '.join(list_code_classes(config))}), which Assay never "
            f"runs; declare `code: ignore` if that code computes what transformers' own {model_type!r} computes"
        )


def list_code_classes(config: Mapping[str, Any]) -> list[str]:
    """Return the classes that `auto_map` names, as "module.Class", in the order of the file."""
    entries = config.get("auto_map")
    values = entries.values() if isinstance(entries, dict) else [entries]
    flat = (name for value in values for name in (value if isinstance(value, list) else [value]))
    return list(dict.fromkeys(str(name) for name in flat if name))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        StartError: the file cannot be read, or is not a JSON object.
    """
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StartError(f"{path}: cannot be read as JSON: {error}; download or save the file again") from error
    if not isinstance(read, dict):
        raise StartError(f"{path}: not a JSON object; download or save the file again")
    return read


def _explain_instead(directory: Path, file_name: str) -> str:
    """Explain what to declare instead of a directory without `file_name`, and what it contains if that is known."""
    if (directory / "run.json").is_file() and (directory / "checkpoint").is_dir():
        return f"; this is the directory of a training run: declare its checkpoint, {directory / 'checkpoint'}"
    if file_name == "config.json" and (directory / ADAPTER_CONFIG).is_file():
        return "; this is a LoRA adapter: declare it as `adapter`, not as `base`"
    if file_name == ADAPTER_CONFIG and (directory / "config.json").is_file():
        return "; this is a whole model: declare it as `base`, not as `adapter`"
    return "; declare the directory of a checkpoint that has this file"


def find_value_head_files(directory: Path) -> list[Path]:
    """Return the file in which LLaMA-Factory keeps the head, if there is one."""
    path = directory / VALUE_HEAD
    return [path] if path.is_file() else []
