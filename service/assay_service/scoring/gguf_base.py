"""Write the model of a GGUF file in the files that transformers writes: configuration, tokenizer and fp32 weights.

Only what is known to be read rightly is written; any other architecture, tokenizer or key is an error.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from assay_service.errors import StartError
from assay_service.scoring.gguf_header import GgufHeader, read_gguf_header
from assay_service.scoring.gguf_tokenizer import ARRAYS, build_tokenizer, check_tokenizer, find_special_ids
from assay_service.scoring.gguf_values import EMBEDDING, LAYOUTS, OUTPUT, read_tensor, rename

_ARCHITECTURE = "llama"
_LAYOUT = LAYOUTS[_ARCHITECTURE]
# Keys of the metadata under the architecture's prefix, and what transformers' LlamaConfig calls them.
_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
_ROPE_BASE, _ROPE_DIMENSIONS = "rope.freq_base", "rope.dimension_count"
_WEIGHTS = "model.safetensors"


def write_base(gguf: Path, directory: Path) -> dict[str, str]:
    """Write the model of a GGUF file, and return the SHA-256 of each written file by name.

    The bytes of the weights depend on nothing but the GGUF file, since adapters name their base by this hash.

    Args:
        gguf: the file.
        directory: directory that gets `config.json`, the tokenizer's files and `model.safetensors`.

    Raises:
        StartError: the file is broken, or has an architecture, a tokenizer or a key that is not read.
        OSError: the directory cannot be written.
    """
    header = read_gguf_header(gguf, ARRAYS)
    config = _build_config(header)
    names = _name_tensors(header)
    texts = {"config.json": json.dumps(config, indent=1, sort_keys=True) + "\n", **build_tokenizer(header)}
    hashes = {}
    for name, text in texts.items():
        (directory / name).write_bytes(text.encode())
        hashes[name] = hashlib.sha256(text.encode()).hexdigest()
    heads = config["num_attention_heads"], config["num_key_value_heads"]
    hashes[_WEIGHTS] = _write_weights(directory / _WEIGHTS, header, names, heads)
    return hashes


def _build_config(header: GgufHeader) -> dict[str, Any]:
    """Return the `config.json` of the model.

    Raises:
        StartError: the architecture, its tokenizer or a key is not read, or a key is missing or contradicts another.
    """
    if header.architecture != _ARCHITECTURE:
        raise StartError(
            f"{header.path.name}: general.architecture is {header.architecture!r}, but of packages Assay reads "
            f"{_ARCHITECTURE!r}; use a model in transformers' format"
        )
    check_tokenizer(header)
    prefix, keys = f"{_ARCHITECTURE}.", (*_SIZES, _ROPE_BASE, _ROPE_DIMENSIONS)
    unknown = [key for key in header.metadata if key.startswith(prefix) and key.removeprefix(prefix) not in keys]
    missing = [prefix + key for key in keys if not header.get_number(key)]
    if unknown or missing:
        problem = f"{unknown[0]} is not read" if unknown else f"{missing[0]} is missing"
        raise StartError(f"{header.path.name}: {problem}; use a model in transformers' format")
    sizes: dict[str, Any] = {name: header.get_number(key) for key, name in _SIZES.items()}
    head_dim, rotated = sizes["hidden_size"] // sizes["num_attention_heads"], header.get_number(_ROPE_DIMENSIONS)
    rows = header.tensors[EMBEDDING].shape[0] if EMBEDDING in header.tensors else None
    for key, number, there in ((_ROPE_DIMENSIONS, rotated, head_dim), ("vocab_size", sizes["vocab_size"], rows)):
        if number != there:
            raise StartError(
                f"{header.path.name}: {prefix}{key} is {number}, but the tensors have {there}; use a model in "
                "transformers' format"
            )
    return sizes | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": _ARCHITECTURE,
        "attention_bias": False,
        "dtype": "float32",
        "head_dim": head_dim,
        "hidden_act": "silu",
        "mlp_bias": False,
        "rope_parameters": {"rope_theta": header.get_number(_ROPE_BASE), "rope_type": "default"},
        "tie_word_embeddings": OUTPUT not in header.tensors,
        **{f"{name}_token_id": token for name, token in find_special_ids(header).items() if name != "unk"},
    }


def _name_tensors(header: GgufHeader) -> dict[str, str]:
    """Return the names of all tensors in the file by their names in transformers, in the order of a safetensors file.

    Raises:
        StartError: a tensor has no place in the architecture.
    """
    names = {}
    for name in header.tensors:
        bare = rename(name, _LAYOUT.modules)
        if bare is None and name != OUTPUT:
            raise StartError(
                f"{header.path.name}: tensor {name} has no place in the architecture {_ARCHITECTURE!r}; use a model in "
                "transformers' format"
            )
        names["lm_head.weight" if bare is None else f"model.{bare}"] = name
    return dict(sorted(names.items()))


def _write_weights(path: Path, header: GgufHeader, names: Mapping[str, str], heads: tuple[int, int]) -> str:
    """Write a safetensors file with one tensor in memory at a time, and return its SHA-256.

    safetensors' own writer needs all tensors at once. The bytes are the ones that it writes.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, stored in names.items():
        shape = header.tensors[stored].shape
        start, end = end, end + 4 * prod(shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (struct.pack("<Q", len(text)), text):
            digest.update(part)
            file.write(part)
        for stored in names.values():
            values = read_tensor(header, stored, _LAYOUT, *heads).astype("<f4", copy=False)
            digest.update(values.data)
            file.write(values.data)
    return digest.hexdigest()
