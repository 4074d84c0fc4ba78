"""What a run leaves behind: configuration, metrics, predictions by part, and the checkpoint that is served.

Metrics go to `metrics.jsonl` and, for plots, to TensorBoard files below `tensorboard/`. JSON files are written under
another name and then renamed, so a killed run leaves whole files or none. Of a checkpoint the manifest is written last;
a directory without it is not one.
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

from assay_service.scoring.files import sha256_of, weight_files
from assay_training.runs.metrics import MetricsWriter, not_finite
from assay_training.runs.resume import ResumePoint

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

    def metrics(self, part: str) -> MetricsWriter:
        """Where the training of a part writes its steps."""
        return MetricsWriter(self.path, part)


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
