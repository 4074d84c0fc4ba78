"""What a run leaves behind: configuration, metrics, predictions by part, and the checkpoint that is served.

Metrics go to `metrics.jsonl` and, for plots, to TensorBoard files below `tensorboard/`. JSON files are written under
another name and then renamed, so a killed run leaves whole files or none. Of a checkpoint the manifest is written last;
a directory without it is not one.
"""

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter
from transformers import AutoConfig

from assay_service.scoring import manifest as manifests
from assay_service.scoring import tokenizer
from assay_service.scoring.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, sha256_of, weight_files
from assay_training.config.reward import RewardConfig
from assay_training.resume import ResumePoint

LOCK = "run.lock"


BASE_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip


class RunMismatch(ValueError):
    """The directory holds a run of another configuration or of other data."""


class RunDirectory:
    """A directory with the state of one run.

    Args:
        path: is created if need be.
        identity: all that decides what the run computes; must equal that of a run already there.
        writes: whether this process writes; of several that train together one does.

    Raises:
        RunMismatch: a different run is there, or files that are no run's, or another process runs it now.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, writes: bool) -> None:
        self.path, self.writes = path, writes
        path.mkdir(parents=True, exist_ok=True)
        recorded = self.read_json("run.json")
        if recorded is not None and recorded != identity:
            raise RunMismatch(
                f"{path} holds a run of another configuration or of other data; choose another --out "
                f"({'; '.join(islice(_differences(recorded, json.loads(json.dumps(identity))), 3))})"
            )
        # A start that was killed may have left its first file half written.
        if recorded is None and writes and {file.name for file in path.iterdir()} - {"run.json.tmp", LOCK}:
            raise RunMismatch(f"{path} holds files that are no run's; choose another --out")
        if writes:
            _lock(path)
        self.write_json("run.json", identity)

    def read_json(self, name: str) -> Any:  # noqa: ANN401 - JSON
        """The contents of `name`, or None if the run has not got that far."""
        file = self.path / name
        try:
            return json.loads(file.read_text()) if file.is_file() else None
        except ValueError as error:
            raise RunMismatch(f"{file} is broken: {error}; remove it, and what is in it is computed again") from error

    def write_json(self, name: str, value: Any) -> None:  # noqa: ANN401 - JSON
        """Writes `value` as `name`, whole or not at all.

        Raises:
            FloatingPointError: it holds a number that is not finite.
        """
        if not self.writes:
            return
        temporary = self.path / f"{name}.tmp"
        lost = next(not_finite(value), None)
        if lost is not None:
            where = f"{self.path / name}: {lost[0]}".removesuffix(": ")
            raise FloatingPointError(f"{where} is {lost[1]}: what the model gives is not finite")
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
        temporary.rename(self.path / name)

    def resume_point(self, part: str) -> ResumePoint:
        """Where the training of a part stands."""
        return ResumePoint(self.path / "state" / f"{part}.pt")

    def forget(self) -> None:
        """Removes what only an interrupted run needs."""
        if self.writes:
            shutil.rmtree(self.path / "state", ignore_errors=True)

    def metrics(self, part: str) -> "Metrics":
        """Where the training of a part writes its steps."""
        return Metrics(self.path, part)


class Metrics:
    """The rows of one part of a run, a row per step.

    Args:
        run: the run directory.
        part: what is trained.
    """

    def __init__(self, run: Path, part: str) -> None:
        self._file = run / "metrics.jsonl"
        self._plots = run / "tensorboard" / part
        self._part = part

    def begin(self, step: int) -> None:
        """Forgets the rows from `step` on: an interrupted run wrote them and comes by them again."""
        there = self._file.read_text() if self._file.is_file() else ""
        kept = "".join(f"{line}\n" for line in there.splitlines() if self._stays(line, step))
        if kept != there:  # also where only the last newline is missing, without which two rows would be one
            temporary = self._file.with_suffix(".tmp")
            temporary.write_text(kept)
            temporary.rename(self._file)
        self._writer = SummaryWriter(str(self._plots), purge_step=step)

    def _stays(self, line: str, step: int) -> bool:
        try:
            row = json.loads(line)
        except ValueError:  # half a line, which a power cut left; its step comes again
            return False
        return bool(row["part"] != self._part or row["step"] < step)

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends a row, which holds `step`, numbers, and texts, which are not plotted.

        Raises:
            FloatingPointError: a number is not finite; names step and metric.
        """
        lost = next(not_finite(row), None)
        if lost is not None:
            raise FloatingPointError(f"{self._part}: step {row['step']}: {lost[0]} is {lost[1]}")
        with self._file.open("a") as stream:
            stream.write(json.dumps({"part": self._part, **row}, allow_nan=False) + "\n")
        for name, value in row.items():
            if name != "step" and not isinstance(value, str):
                self._writer.add_scalar(name, value, row["step"])

    def end(self) -> None:
        """Writes what is still held back."""
        self._writer.close()


def not_finite(value: Any, name: str = "") -> Iterator[tuple[str, float]]:  # noqa: ANN401 - JSON
    """Yield the numbers of a JSON value that are not finite, each with the keys and indices that lead to it."""
    if isinstance(value, float):
        if not math.isfinite(value):
            yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from not_finite(part, f"{name}.{key}".removeprefix("."))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from not_finite(part, f"{name}[{number}]")


def _differences(recorded: Any, now: Any, name: str = "") -> Iterator[str]:  # noqa: ANN401 - JSON
    """What differs, key by key."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*recorded, *now]):
            if recorded.get(key) != now.get(key):
                yield from _differences(recorded.get(key), now.get(key), f"{name}.{key}".removeprefix("."))
    else:
        was, becomes = (shorten(json.dumps(of), 60) for of in (recorded, now))
        yield f"{name} was {was} and is {becomes}"


def base_identity(base: Path) -> dict[str, str]:
    """Hashes of a base: its weights, and what else decides what it computes."""
    others = [base / name for name in BASE_FILES if (base / name).is_file()]
    return {"base_sha256": sha256_of(weight_files(base)), "base_files_sha256": sha256_of(others)}


def _lock(path: Path) -> None:
    """Takes the lock of a run directory, until this process ends, however it does; once more in it does no harm."""
    lock = os.open(path / LOCK, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RunMismatch(f"{path}: another process is at work on this run") from error


def write_adapter(
    directory: Path, tensors: Mapping[str, torch.Tensor], config: RewardConfig, head_name: str, template: str
) -> None:
    """Writes an adapter with its head in PEFT's format, and the template.

    Args:
        directory: is created if need be; a manifest of an older checkpoint in it is removed.
        tensors: LoRA and head tensors under PEFT's names.
        config: the run's.
        head_name: the module that PEFT calls `modules_to_save`.
        template: the run's.
    """
    assert config.lora is not None
    _write_tensors(directory, ADAPTER_WEIGHTS, tensors, template)
    adapter = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": config.base_reference,
        "revision": config.revision,
        "r": config.lora.r,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": config.lora.target_modules,
        "layers_to_transform": config.lora.layers,
        "bias": "none",
        "modules_to_save": [head_name],
        "inference_mode": True,
    }
    (directory / ADAPTER_CONFIG).write_text(json.dumps(adapter, indent=1) + "\n")


def write_whole(directory: Path, tensors: Mapping[str, torch.Tensor], template: str, base: Path) -> None:
    """Writes a base with its head in transformers' format, the base's tokenizer, and the template.

    Args:
        directory: is created if need be; a manifest of an older checkpoint in it is removed.
        tensors: all of them, under transformers' names.
        template: the run's.
        base: where `config.json` and the tokenizer are copied from.
    """
    _write_tensors(directory, "model.safetensors", tensors, template)
    config = AutoConfig.from_pretrained(base, num_labels=1)
    config.dtype = "float32"  # what the tensors are; a base in half precision says its own, and they would be rounded
    config.save_pretrained(directory)
    tokenizer.write(base, directory, template)


def _write_tensors(directory: Path, name: str, tensors: Mapping[str, torch.Tensor], template: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / manifests.FILE_NAME).unlink(missing_ok=True)
    save_file(dict(tensors), directory / name, metadata={"format": "pt"})
    (directory / name).chmod(0o644)  # safetensors makes it private, and the server may be another user
    (directory / tokenizer.TEMPLATE_FILE).write_text(template)
