"""Find the weights of a foreign checkpoint and read their tensors, without running any code of it.

Pickles are read by `torch.load(weights_only=True)`, which builds tensors and plain containers and nothing else
(CVE-2025-32434). One file at a time is in memory; a pickle of torch 1.6 or later is mapped, not copied.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from assay_service.errors import StartError
from assay_service.scoring.files import find_pickles, read_config

# Keys under which trainers keep the state dict in a larger record.
_INNER = ("state_dict", "model_state_dict", "module", "model")
_BLOCKED = re.compile(r"GLOBAL ([\w.]+)")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.\w+$")


def find_weights(directory: Path, stem: str) -> list[Path]:
    """Return the files that hold a state dict: safetensors files if there are some, else pickles.

    Args:
        directory: directory of the checkpoint.
        stem: name of the safetensors file without its ending: `model`, `adapter_model` or `value_head`.

    Raises:
        StartError: a shard is missing, or there are several pickles and none is called as expected.
    """
    # First, because reading it cannot run any code.
    single = directory / f"{stem}.safetensors"
    for index in (single.with_name(f"{single.name}.index.json"), directory / "pytorch_model.bin.index.json"):
        if single.is_file():
            return [single]
        if stem == "model" and index.is_file():
            return _list_shards(directory, index)
    pickles = find_pickles(directory, single.name)
    if len(pickles) > 1 and not all(_SHARD.search(path.name) for path in pickles):
        raise StartError(
            f"{directory}: has several pickles ({', '.join(path.name for path in pickles)}); leave only the one with "
            "the model's weights"
        )
    _check_shard_names(pickles)
    return pickles


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a safetensors file or a pickle, keyed by name, on the CPU.

    Raises:
        StartError: the file cannot be read, needs more than tensors, or holds an entry that is not a dense tensor.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # the safetensors library has no exception class of its own for all faults
            raise StartError(f"{path}: not a whole safetensors file ({error}); download it again") from error
    return _check_tensors(_unwrap(_load_pickle(path)), path)


def _load_pickle(path: Path) -> object:
    try:
        # Only the zip format of torch 1.6 can be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if (blocked := _BLOCKED.search(str(error))) is not None:
            raise StartError(
                f"{path}: needs {blocked[1]}, which is not a tensor; loading it could run code, so it is refused. "
                "Save the model's state_dict() alone, where you trust the file: torch.save(model.state_dict(), PATH)"
            ) from None
        raise StartError(
            f"{path}: holds more than tensors, or is not a pickle of torch, so it is refused: "
            f"{str(error).splitlines()[0]}; save the model's state_dict() alone"
        ) from None
    except Exception as error:  # broken files raise many types: EOFError, RuntimeError, KeyError, …
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise StartError(f"{path}: cannot be read as a pickle of torch: {first}; download it again") from error


def _unwrap(loaded: object) -> object:
    """Return the state dict in a trainer's record, or the object itself."""
    while isinstance(loaded, dict) and not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        inner = [loaded[key] for key in _INNER if isinstance(loaded.get(key), dict)]
        if not inner:
            break
        loaded = inner[0]
    return loaded


def _check_tensors(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    if not isinstance(loaded, Mapping) or not loaded:
        raise StartError(f"{path}: holds {type(loaded).__name__}, not a state dict; save model.state_dict()")
    for name, tensor in loaded.items():
        if not isinstance(tensor, torch.Tensor):
            raise StartError(
                f"{path}: {name!r} is {type(tensor).__name__}, not a tensor; save the model's state_dict() alone"
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise StartError(f"{path}: {name} is sparse or quantized; save the model with plain tensors")
        # A few bytes could stand for a tensor of any size, which no state dict of a model has.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise StartError(f"{path}: {name} repeats its values without storing them; save the model again")
    return {str(name): tensor.detach() for name, tensor in loaded.items()}


def _list_shards(directory: Path, index: Path) -> list[Path]:
    names = sorted({str(name) for name in (read_config(directory, index.name).get("weight_map") or {}).values()})
    for name in names:
        if Path(name).name != name:
            raise StartError(f"{index}: shard {name!r} is not a file of this directory; download the checkpoint again")
        if not (directory / name).is_file():
            raise StartError(f"{index}: shard {name} is missing; download the checkpoint again")
    if not names:
        raise StartError(f"{index}: weight_map names no shard; download the checkpoint again")
    return [directory / name for name in names]


def _check_shard_names(pickles: list[Path]) -> None:
    """Refuse shards without an index of which one is missing, by the numbers in their names."""
    numbers = [(int(match[1]), int(match[2])) for path in pickles if (match := _SHARD.search(path.name))]
    missing = {count for _, count in numbers} and sorted(set(range(1, numbers[0][1] + 1)) - {n for n, _ in numbers})
    if missing:
        raise StartError(
            f"{pickles[0].parent}: shard {missing[0]} of {numbers[0][1]} is missing; download the checkpoint again"
        )
