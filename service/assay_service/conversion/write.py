"""Write a converted checkpoint so that it appears whole or not at all."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from assay_service.errors import StartError
from assay_service.scoring import manifest
from assay_service.scoring.atomic import write_atomically
from assay_service.scoring.files import TOKENIZER_FILE
from assay_service.scoring.manifest import Manifest
from assay_service.scoring.special_tokens import TOKENIZER_CONFIG
from assay_service.scoring.tokenizer import TEMPLATE_FILE

LARGEST_SHARD_BYTES = 5_000_000_000
# All that a tokenizer of this service reads. Python files of a checkpoint are never copied.
_TOKENIZER_FILES = (TOKENIZER_FILE, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", TEMPLATE_FILE)
_TEMPLATES = "additional_chat_templates"


@contextmanager
def appear_whole(directory: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `directory`, which gets that name when the block ends without an error.

    Raises:
        StartError: `directory` exists and is not empty, or the file system refuses.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise StartError(f"{directory}: exists already; name a directory that does not exist, or is empty")
    try:
        with write_atomically(directory, durable=True) as fresh:
            fresh.mkdir()
            yield fresh
    except OSError as error:
        raise StartError(
            f"{directory}: cannot be written: {error}; nothing was kept: name another directory"
        ) from error


@contextmanager
def write_checkpoint(
    out: Path, config: Mapping[str, Any], tokenizer: Path, template: str | None, claims: Manifest | None
) -> Iterator["WeightWriter"]:
    """Yield the writer of the weights of a checkpoint, whose other files follow when the block ends without an error.

    Args:
        out: directory of the converted checkpoint, which appears whole or not at all.
        config: its `config.json`.
        tokenizer: directory of the tokenizer.
        template: chat template that replaces that of the tokenizer; None keeps it.
        claims: its manifest; None for no manifest.

    Raises:
        StartError: `out` exists and is not empty, or the file system refuses.
    """
    with appear_whole(out) as directory:
        writer = WeightWriter(directory)
        yield writer
        writer.close()
        write_json(directory / "config.json", config)
        copy_tokenizer(tokenizer, directory, template)
        if claims is not None:
            manifest.write(claims, directory)


class WeightWriter:
    """A writer of safetensors files that keeps one shard in memory.

    Args:
        directory: directory into which it writes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._shard: dict[str, torch.Tensor] = {}
        # Counted by hand: the index of transformers names the size of all weights.
        self._bytes = self._total = 0
        self._written: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor of any shape in its own dtype, now or with the next ones.

        Args:
            name: name of the tensor in the file.
            tensor: tensor of any shape and dtype, which stays in memory until it is written.

        Raises:
            OSError: a file cannot be written.
        """
        size = tensor.numel() * tensor.element_size()
        if self._shard and self._bytes + size > LARGEST_SHARD_BYTES:
            # A tensor that alone is larger than a shard still gets one of its own.
            self.flush()
        self._shard[name] = tensor
        self._bytes, self._total = self._bytes + size, self._total + size

    def add_files(self, files: Iterable[Mapping[str, torch.Tensor]], targets: Mapping[str, str]) -> None:
        """Write the tensors of files that have a target, one file in memory at a time.

        Args:
            files: tensors of each file by name, of any shape and dtype.
            targets: written name of each tensor; a tensor without one is skipped.
        """
        for tensors in files:
            for name, tensor in tensors.items():
                if name in targets:
                    self.add(targets[name], tensor)
            self.flush()

    def flush(self) -> None:
        """Write the tensors that wait, so that the memory of their source can be freed."""
        if self._shard:
            save(self._shard, self._path(len(self._written)))
            self._written.append(list(self._shard))
        self._shard, self._bytes = {}, 0

    def close(self) -> None:
        """Write the rest, and give the files the names that transformers expects."""
        self.flush()
        count = len(self._written)
        # transformers looks for this name first, and needs no index then.
        if count == 1:
            self._path(0).rename(self.directory / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, tensors in enumerate(self._written):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._path(number).rename(self.directory / file)
            weight_map |= dict.fromkeys(tensors, file)
        # The index says which file has a tensor; without it transformers reads none of the shards.
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        write_json(self.directory / "model.safetensors.index.json", index)

    def _path(self, number: int) -> Path:
        return self.directory / f"part-{number}.safetensors"


def save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors into one safetensors file, which stores each of them for itself.

    Args:
        tensors: tensors of any shape and dtype by name, which the file keeps; they may share storage.
        path: the new file.

    Raises:
        OSError: the file cannot be written.
    """
    storages: set[int] = set()
    stored = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if pointer in storages else tensor
        storages.add(pointer)
    # The library refuses tensors that are not contiguous, or share their storage.
    try:
        save_file({name: tensor.contiguous() for name, tensor in stored.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:  # the library's own error, also where the disk is full
        raise OSError(f"{path.name}: {error}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, indented by one space."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_tokenizer(source: Path, directory: Path, template: str | None) -> None:
    """Copy the files of a tokenizer byte for byte.

    Args:
        source: directory of the tokenizer.
        directory: directory of the converted checkpoint.
        template: chat template that replaces those of the source; None keeps them.
    """
    # Copied, not written anew, because their bytes are part of the fingerprint.
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    if template is not None:
        (directory / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    elif (source / _TEMPLATES).is_dir():
        (directory / _TEMPLATES).mkdir()
        for path in sorted((source / _TEMPLATES).glob("*.jinja")):
            shutil.copyfile(path, directory / _TEMPLATES / path.name)
