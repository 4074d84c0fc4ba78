"""Manage the directory of a run: its configuration, metrics, predictions, resume points and checkpoint.

Metrics go to `metrics.jsonl` and, for plots, to TensorBoard files in `tensorboard/`. JSON files are written under
another name and then renamed, so that a killed run leaves complete files or none. The manifest of a checkpoint is
written last; a directory without it is not a checkpoint.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

from assay_service.scoring.files import list_weight_files
from assay_service.scoring.hashing import hash_files
from assay_training.runs.files import replace_whole
from assay_training.runs.metrics import MetricsWriter, find_not_finite
from assay_training.runs.resume import ResumePoint

LOCK = "run.lock"

# Files of a base, besides its weights, that decide what it computes.
BASE_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip


class RunMismatch(ValueError):
    """The error of a run directory that belongs to another run, or that another process uses."""


class RunDirectory:
    """A directory with the state and the results of one run.

    Args:
        path: directory; created if it does not exist.
        identity: everything that decides what the run computes, as JSON. It must equal the identity of a run that the
            directory already holds.
        writes: True in the one process that writes; the others of a run only read.

    Attributes:
        path: directory of the run.
        writes: whether this process writes.

    Raises:
        RunMismatch: the directory holds a different run, or files that do not belong to a run; or another process
            works on the run.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, writes: bool) -> None:
        self.path, self.writes = path, writes
        path.mkdir(parents=True, exist_ok=True)
        recorded = self.read_json("run.json")
        # Resuming with other data or settings would silently mix two runs.
        if recorded is not None and recorded != identity:
            raise RunMismatch(
                f"{path} holds a run with another configuration or other data; choose another --out "
                f"({'; '.join(islice(_find_differences(recorded, json.loads(json.dumps(identity))), 3))})"
            )
        # A run killed at its start may have left its first file half written.
        if recorded is None and writes and {file.name for file in path.iterdir()} - {"run.json.tmp", LOCK}:
            raise RunMismatch(f"{path} holds files that do not belong to a run; choose another --out")
        if writes:
            _lock(path)
        self.write_json("run.json", identity)

    def read_json(self, name: str) -> Any:  # noqa: ANN401 - JSON
        """Return the contents of the JSON file `name`, or None if the run has not written it yet.

        Raises:
            RunMismatch: the file is not valid JSON.
        """
        file = self.path / name
        try:
            return json.loads(file.read_text()) if file.is_file() else None
        except ValueError as error:
            raise RunMismatch(
                f"{file} is broken: {error}; remove it, and the run computes its contents again"
            ) from error

    def write_json(self, name: str, value: Any) -> None:  # noqa: ANN401 - JSON
        """Write `value` as the JSON file `name`, completely or not at all, if this process writes.

        Raises:
            FloatingPointError: the value has a number that is not finite, which JSON cannot express.
        """
        if not self.writes:
            return
        fault = next(find_not_finite(value), None)
        if fault is not None:
            where = f"{self.path / name}: {fault[0]}".removesuffix(": ")
            raise FloatingPointError(f"{where} is {fault[1]}: the model's output is not finite")
        text = json.dumps(value, indent=1, allow_nan=False) + "\n"
        replace_whole(self.path / name, lambda path: path.write_text(text))

    def resume_point(self, part: str) -> ResumePoint:
        """Return the resume point of one training of the run, such as a fold or a stage."""
        return ResumePoint(self.path / "state" / f"{part}.pt")

    def forget(self) -> None:
        """Remove the state that only an interrupted run needs."""
        if self.writes:
            shutil.rmtree(self.path / "state", ignore_errors=True)

    def metrics(self, part: str) -> MetricsWriter:
        """Return the writer of the metrics of one training of the run."""
        return MetricsWriter(self.path, part)


def _find_differences(recorded: Any, now: Any, name: str = "") -> Iterator[str]:  # noqa: ANN401 - JSON
    """Yield a sentence for each key whose recorded value differs from the current one."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*recorded, *now]):
            if recorded.get(key) != now.get(key):
                yield from _find_differences(recorded.get(key), now.get(key), f"{name}.{key}".removeprefix("."))
    else:
        before, after = (shorten(json.dumps(value), 60) for value in (recorded, now))
        yield f"{name} was {before} and is {after}"


def hash_base(base: Path) -> dict[str, str]:
    """Return the SHA-256 of a base's weights, and of its other files that decide what it computes."""
    others = [base / name for name in BASE_FILES if (base / name).is_file()]
    return {"base_sha256": hash_files(list_weight_files(base)), "base_files_sha256": hash_files(others)}


def _lock(path: Path) -> None:
    """Lock a run directory until this process ends, however it does; locking it twice in one process is harmless.

    Raises:
        RunMismatch: another process holds the lock.
    """
    # Not closed: the lock must last as long as the process.
    lock = os.open(path / LOCK, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RunMismatch(f"{path}: another process works on this run; wait for it, or choose another --out") from error
