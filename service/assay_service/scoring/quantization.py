"""Decide how the quantized weights of a base are read, from its declaration and `config.json`, without torch.

Quantized weights are read only if the configuration declares their format. They become plain weights once, at the
start; the forward pass is that of any other base.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from assay_service.errors import StartError

# Formats that `config.json` names as `quant_method`.
Method = Literal["fp8", "compressed-tensors", "bitsandbytes"]
GGUF = "gguf"
CONFIG_KEY = "quantization_config"

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
# llama.cpp calls the parts of a model `NAME-00001-of-00003.gguf`.
_PART = re.compile(r"-\d+-of-\d+$")

# The remedy for weights in a format that is not read.
_USE_ORIGINAL = "use the checkpoint that these weights were made from"


@dataclass(frozen=True, slots=True)
class Quantization:
    """The format of a base's quantized weights.

    Attributes:
        method: `gguf`, or the `quant_method` of `config.json`.
        gguf_file: name of the GGUF file in the base's directory; None for the other formats.
    """

    method: str
    gguf_file: str | None = None


@dataclass(frozen=True, slots=True)
class ScaleGrid:
    """The shapes that the scales of FP8 weights have.

    Attributes:
        block: rows and columns that share a scale; None where a scale belongs to a whole tensor or to a row of it.
    """

    block: tuple[int, int] | None

    def list_shapes(self, shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Return the shapes that the scales of a weight of this shape may have."""
        rows, columns = shape
        if self.block is None:
            return (), (1,), (1, 1), (rows, 1)
        return ((math.ceil(rows / self.block[0]), math.ceil(columns / self.block[1])),)


def decide_quantization(
    declared: Method | None, gguf_file: str | None, config: Mapping[str, Any], base: Path
) -> Quantization | None:
    """Return the format of a base's weights; None for weights that are not quantized.

    Args:
        declared: key `quantization` of the signal.
        gguf_file: key `gguf_file` of the signal.
        config: the base's `config.json`.
        base: directory of the base.

    Raises:
        StartError: the declaration and the files do not agree, or the format is not read; the message names the key.
    """
    method = read_method(config, base)
    if gguf_file is not None:
        return _decide_gguf(gguf_file, method, base)
    if not any((base / name).is_file() for name in _SAFETENSORS) and (found := list_gguf_files(base)):
        raise StartError(f"gguf_file: declare it; {base} has {', '.join(found)}, and no safetensors files")
    if declared is not None and method is None:
        raise StartError(
            f"quantization: {declared!r} is declared, but {base / 'config.json'} has no `{CONFIG_KEY}`; remove the "
            "key, or declare the quantized checkpoint"
        )
    if method is None:
        return None
    if declared is None and method in get_args(Method):
        raise StartError(
            f"quantization: declare it; {base / 'config.json'} says that the weights are quantized by {method!r}"
        )
    check_declared(config, declared, base)
    if method == "bitsandbytes":
        _check_bitsandbytes(config[CONFIG_KEY], base)
    else:
        read_grid(config[CONFIG_KEY], base)
    return Quantization(method)


def read_method(config: Mapping[str, Any], where: Path) -> str | None:
    """Return the format that `config.json` names; None where the weights are not quantized.

    Raises:
        StartError: `quantization_config` names no format.
    """
    entry = config.get(CONFIG_KEY)
    if not entry:
        return None
    method = entry.get("quant_method")
    if method is None and (entry.get("load_in_4bit") or entry.get("load_in_8bit")):
        return "bitsandbytes"  # files that were written before there were other formats
    if not isinstance(method, str):
        raise StartError(f"{where / 'config.json'}: {CONFIG_KEY} has no quant_method; download the file again")
    return method


def check_declared(config: Mapping[str, Any], declared: str | None, where: Path) -> None:
    """Refuse a base with quantized weights unless their format is declared.

    Args:
        config: the base's `config.json`.
        declared: format that is declared; None if there is none, or where no format can be declared.
        where: directory of the base, for errors.

    Raises:
        StartError: the declaration is missing or names another format, or the format is not read.
    """
    method = read_method(config, where)
    if method is None or method == declared:
        return
    start = f"{where / 'config.json'}: `{CONFIG_KEY}` says that the weights are quantized by {method!r}"
    if method not in get_args(Method):
        raise StartError(
            f"{start}, which Assay does not read; it reads GGUF, {', '.join(get_args(Method))}: {_USE_ORIGINAL}"
        )
    if declared is None:
        raise StartError(f"{start}; declare `quantization: {method}` for a signal, or use weights that are not")
    raise StartError(f"quantization: {declared!r} is declared, but {start.partition(': ')[2]}; declare {method!r}")


def read_grid(entry: Mapping[str, Any], where: Path) -> ScaleGrid:
    """Return the shapes of the scales of FP8 weights, from `quantization_config`.

    Raises:
        StartError: the weights have another type than e4m3, or a rule that is not read; the message names the key.
    """
    source = f"{where / 'config.json'}: {CONFIG_KEY}"
    if entry.get("quant_method") == "compressed-tensors":
        return _read_compressed_grid(entry, source)
    if entry.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise StartError(f"{source}: fmt is {entry['fmt']!r}, but Assay reads 'e4m3'; {_USE_ORIGINAL}")
    return ScaleGrid(_read_block(entry.get("weight_block_size"), f"{source}: weight_block_size"))


def _read_compressed_grid(entry: Mapping[str, Any], source: str) -> ScaleGrid:
    """Return the shapes of the scales that compressed-tensors declares; every group of layers must have the same."""
    if entry.get("format") not in ("float-quantized", "naive-quantized"):
        raise StartError(
            f"{source}: format is {entry.get('format')!r}, but of compressed-tensors Assay reads FP8 weights; "
            f"{_USE_ORIGINAL}"
        )
    if entry.get("sparsity_config"):
        raise StartError(f"{source}: sparsity_config is not read; use the checkpoint without sparsity")
    groups = entry.get("config_groups")
    blocks: set[tuple[int, int] | None] = set()
    for name, group in (groups if isinstance(groups, dict) else {}).items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            raise StartError(
                f"{source}: config_groups.{name} has no `weights`, but Assay reads FP8 weights; {_USE_ORIGINAL}"
            )
        wanted = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
        for key, value in wanted.items():
            if weights.get(key, value) != value:
                raise StartError(
                    f"{source}: config_groups.{name}.weights.{key} is {weights[key]!r}, but Assay reads {value!r}; "
                    f"{_USE_ORIGINAL}"
                )
        strategy = weights.get("strategy", "tensor")
        if strategy not in ("tensor", "channel", "block"):
            raise StartError(
                f"{source}: config_groups.{name}.weights.strategy is {strategy!r}, but Assay reads tensor, channel and "
                f"block; {_USE_ORIGINAL}"
            )
        where = f"{source}: config_groups.{name}.weights.block_structure"
        blocks.add(_read_block(weights.get("block_structure"), where) if strategy == "block" else None)
    if len(blocks) != 1:
        raise StartError(
            f"{source}: config_groups must have one rule for all weights, but has {len(blocks)}; {_USE_ORIGINAL}"
        )
    return ScaleGrid(blocks.pop())


def _read_block(value: object, where: str) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(n, int) and n > 0 for n in value):
        raise StartError(f"{where} is {value!r}; it must be two positive numbers, as [128, 128]")
    return value[0], value[1]


def _check_bitsandbytes(entry: Mapping[str, Any], where: Path) -> None:
    """Refuse LLM.int8: it rounds the inputs of every layer too, so no plain weights give its logits."""
    if not entry.get("load_in_4bit"):
        raise StartError(
            f"{where / 'config.json'}: {CONFIG_KEY}: load_in_4bit is {entry.get('load_in_4bit')!r}; of bitsandbytes "
            "Assay reads 4-bit weights (nf4, fp4). LLM.int8 rounds the inputs of every layer too, so its logits are "
            "not those of any weights: use the checkpoint that it was made from"
        )


def _decide_gguf(gguf_file: str, method: str | None, base: Path) -> Quantization:
    """Return the format of a declared GGUF file, which must lie in the base's directory."""
    if method is not None:
        raise StartError(
            f"gguf_file: {base / 'config.json'} has a `{CONFIG_KEY}` ({method!r}), which belongs to other weights; use "
            "the config.json of the model that the GGUF file was made from"
        )
    path = base / gguf_file
    if Path(gguf_file).is_absolute() or ".." in Path(gguf_file).parts:
        raise StartError(f"gguf_file: {gguf_file}: must be a file in the base's directory; move it to {base}")
    if not path.is_file():
        raise StartError(f"gguf_file: {path}: no such file{_list_others(base)}")
    if _PART.search(path.stem):
        raise StartError(
            f"gguf_file: {path}: is one part of several; join them by `llama-gguf-split --merge {path.name} OUT.gguf`"
        )
    return Quantization(GGUF, gguf_file)


def list_gguf_files(base: Path) -> list[str]:
    """Return the names of the GGUF files in a directory, sorted."""
    return sorted(path.name for path in base.glob("*.gguf"))


def _list_others(base: Path) -> str:
    found = list_gguf_files(base)
    return f"; declare one of {', '.join(found)}" if found else f"; copy it to {base}"
