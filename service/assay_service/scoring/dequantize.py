"""Read a base with quantized safetensors files: each tensor becomes plain values when it is asked for.

FP8: a weight is multiplied by its scale, for each block, row or tensor, in fp32. bitsandbytes: each half byte is an
index into a table of 16 values, which a scale for each block of the flattened weight multiplies ([QLoRA]).
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from assay_service.errors import StartError
from assay_service.scoring.lazy_tensor import LazyTensor
from assay_service.scoring.quantization import CONFIG_KEY, ScaleGrid, read_grid

# Names of a scale, by format: of DeepSeek and transformers, and of compressed-tensors and AutoFP8.
_SCALES = ("weight_scale_inv", "weight_scale")
# Scales of activations and of the key-value cache: rounding at run time, which plain weights do not need.
_RUN_TIME = (".input_scale", ".output_scale", ".activation_scale", ".k_scale", ".v_scale")
# bitsandbytes may store its bytes as another type (`bnb_4bit_quant_storage`).
_BYTES = {"U8": 1, "BF16": 2, "F16": 2, "F32": 4}
_STATE = ".quant_state.bitsandbytes__"
_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


def read_quantized_tensors(files: Iterable[Path], method: str, config: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """Return the tensors of a base by the names of its files, without the scales.

    Args:
        files: safetensors files.
        method: `quant_method` of `config.json`, a `Method`.
        config: the base's `config.json`.

    Raises:
        StartError: a scale is missing, has a wrong shape, or is not finite; the message names the tensor.
    """
    present = _list_tensors(files)
    if method == "bitsandbytes":
        return _read_4bit(present)
    where = next(iter(present.values()))
    return _read_fp8(present, read_grid(config[CONFIG_KEY], where.parent))


class _Plain(LazyTensor):
    """A tensor as its file stores it."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        with safe_open(path, framework="pt") as tensors:
            self.shape = tuple(tensors.get_slice(name).get_shape())

    def read(self) -> torch.Tensor:
        """Return the values in the shape and dtype of the file."""
        return _read(self._path, self._name)


class _Fp8(LazyTensor):
    """An FP8 weight `[M, N]` with its scales, fp32, one for each cell of the grid."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], scale: torch.Tensor, grid: ScaleGrid) -> None:
        self.shape = shape
        self._path, self._name, self._scale, self._grid = path, name, scale, grid

    def read(self) -> torch.Tensor:
        """Return weight times scale, fp32 `[M, N]`."""
        values = _read(self._path, self._name).float()
        return values.mul_(_expand(self._scale, self._grid, self.shape))


@dataclass(frozen=True, slots=True)
class _FourBit:
    """The parts of a 4-bit weight of bitsandbytes.

    Attributes:
        shape: shape of the weight, `(M, N)`.
        block: number of values that share a scale, in the flattened weight.
        table: the 16 values, fp32 `[16]`.
        scales: a scale for each block, fp32 `[ceil(M * N / block)]`.
    """

    shape: tuple[int, ...]
    block: int
    table: torch.Tensor
    scales: torch.Tensor


class _Bits(LazyTensor):
    """A 4-bit weight of bitsandbytes."""

    def __init__(self, path: Path, name: str, parts: _FourBit) -> None:
        self.shape = parts.shape
        self._path, self._name, self._parts = path, name, parts

    def read(self) -> torch.Tensor:
        """Return the values, fp32 `[M, N]`, as bitsandbytes computes them where its compute dtype is fp32."""
        parts = self._parts
        stored = _read(self._path, self._name).view(torch.uint8).flatten()
        indices = torch.stack([stored >> 4, stored & 15], dim=1).flatten()[: math.prod(self.shape)]
        values = parts.table[indices.int()]
        values.mul_(parts.scales.repeat_interleave(parts.block)[: len(values)])
        return values.reshape(self.shape)


def _list_tensors(files: Iterable[Path]) -> dict[str, Path]:
    """Return the file of each tensor."""
    present: dict[str, Path] = {}
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            present |= dict.fromkeys(tensors.keys(), path)
    return present


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as tensors:
        tensor: torch.Tensor = tensors.get_tensor(name)
    return tensor


def _read_fp8(present: Mapping[str, Path], grid: ScaleGrid) -> dict[str, LazyTensor]:
    """Return FP8 weights with their scales, and all other tensors as they are."""
    tensors: dict[str, LazyTensor] = {}
    for name, path in present.items():
        module, _, last = name.rpartition(".")
        if last in _SCALES or name.endswith(_RUN_TIME):
            if last in _SCALES and f"{module}.weight" not in present:
                raise StartError(f"{path}: {name} is a scale, but there is no {module}.weight; download it again")
            continue
        with safe_open(path, framework="pt") as file:
            dtype, shape = file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape())
        scales = [f"{module}.{scale}" for scale in _SCALES if f"{module}.{scale}" in present]
        if dtype in ("F32", "BF16", "F16"):
            if scales and last == "weight":
                raise StartError(
                    f"{path}: {name} is stored as {dtype}, but has a scale, {scales[0]}; download it again"
                )
            tensors[name] = _Plain(path, name)
            continue
        if dtype != "F8_E4M3" or last != "weight" or len(shape) != 2:
            raise StartError(
                f"{path}: {name} is stored as {dtype} {list(shape)}, but Assay reads FP8 matrices of e4m3; use the "
                "checkpoint that these weights were made from"
            )
        if len(scales) != 1:
            raise StartError(
                f"{path}: {name} is FP8, but has {len(scales)} scales (one of {' or '.join(_SCALES)} is needed); "
                "without its scale it would be wrong: download or quantize the model again"
            )
        tensors[name] = _Fp8(path, name, shape, _read_scale(present, scales[0], grid, shape), grid)
    return tensors


def _read_scale(present: Mapping[str, Path], name: str, grid: ScaleGrid, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the scales of a weight in fp32, after checking their shape and values."""
    scale = _read(present[name], name)
    if not scale.dtype.is_floating_point:
        raise StartError(
            f"{present[name]}: {name} is stored as {scale.dtype}, but Assay reads scales that are floats; use the "
            "checkpoint that these weights were made from"
        )
    allowed = grid.list_shapes(shape)
    if tuple(scale.shape) not in allowed:
        raise StartError(
            f"{present[name]}: {name} has shape {list(scale.shape)}, but its weight has {list(shape)}, which needs "
            f"{' or '.join(str(list(one)) for one in allowed)}; download or quantize it again"
        )
    scale = scale.float()
    _check_finite(present[name], name, scale)
    return scale


def _expand(scale: torch.Tensor, grid: ScaleGrid, shape: tuple[int, ...]) -> torch.Tensor:
    """Return scales that broadcast over a weight of this shape; the last block of a row or column may be smaller."""
    if grid.block is None:
        return scale if scale.dim() == 2 else scale.reshape(())
    rows = scale.repeat_interleave(grid.block[0], dim=0)[: shape[0]]
    return rows.repeat_interleave(grid.block[1], dim=1)[:, : shape[1]]


def _read_4bit(present: Mapping[str, Path]) -> dict[str, LazyTensor]:
    """Return 4-bit weights with their scales, and all other tensors as they are."""
    states = {name.partition(_STATE)[0]: name for name in present if _STATE in name}
    tensors: dict[str, LazyTensor] = {}
    for name, path in present.items():
        if _STATE in name or name.endswith(_PARTS):
            continue
        if name in states:
            tensors[name] = _Bits(path, name, _read_parts(present, name, states[name]))
            continue
        with safe_open(path, framework="pt") as file:
            dtype = file.get_slice(name).get_dtype()
        if dtype not in ("F32", "BF16", "F16"):
            raise StartError(f"{path}: {name} is stored as {dtype}, but has no {name}{_STATE}…; download it again")
        tensors[name] = _Plain(path, name)
    return tensors


def _read_parts(present: Mapping[str, Path], name: str, state: str) -> _FourBit:
    """Return what makes values of a 4-bit weight.

    Raises:
        StartError: a part is missing or does not fit; the message names it.
    """
    missing = [part for part in (f"{name}.absmax", f"{name}.quant_map") if part not in present]
    if missing:
        raise StartError(f"{present[name]}: {name} is 4-bit, but {missing[0]} is missing; download it again")
    try:
        keys = json.loads(bytes(_read(present[state], state).tolist()))
        shape, block = tuple(map(int, keys["shape"])), int(keys["blocksize"])
        scales = _read(present[f"{name}.absmax"], f"{name}.absmax")
        if scales.dtype == torch.uint8:
            scales = _read_nested(present, name, scales, keys)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartError(f"{present[state]}: {state} cannot be read ({error!r}); download it again") from error
    table = _read(present[f"{name}.quant_map"], f"{name}.quant_map").float()
    _check_finite(present[name], f"{name}.absmax", scales)
    needed = math.ceil(math.prod(shape) / block)
    if len(scales) != needed or len(table) != 16:
        raise StartError(
            f"{present[name]}: {name} of shape {list(shape)} needs {needed} scales and 16 values, but has "
            f"{len(scales)} and {len(table)}; download or quantize it again"
        )
    with safe_open(present[name], framework="pt") as file:
        stored = 2 * math.prod(file.get_slice(name).get_shape()) * _BYTES.get(file.get_slice(name).get_dtype(), 0)
    if stored != math.prod(shape) + math.prod(shape) % 2:
        raise StartError(
            f"{present[name]}: {name} has {stored} values, but its shape {list(shape)} needs {math.prod(shape)}; "
            "download it again"
        )
    return _FourBit(shape, block, table, scales.float())


def _read_nested(present: Mapping[str, Path], name: str, stored: torch.Tensor, keys: Mapping[str, Any]) -> torch.Tensor:
    """Return scales that are quantized themselves (double quantization of [QLoRA])."""
    parts = [f"{name}.nested_quant_map", f"{name}.nested_absmax"]
    missing = [part for part in parts if part not in present]
    if missing:
        raise StartError(f"{present[name]}: {name} is 4-bit, but {missing[0]} is missing; download it again")
    table, scales = (_read(present[part], part).float() for part in parts)
    blocks = scales.repeat_interleave(int(keys["nested_blocksize"]))[: len(stored)]
    return table[stored.int()] * blocks + float(keys["nested_offset"])


def _check_finite(path: Path, name: str, values: torch.Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise StartError(f"{path}: {name} has a scale that is not a finite number; download or quantize it again")
