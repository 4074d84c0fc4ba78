"""Rows of a data set, from files or from the hub, as mappings that know where they stand.

Files are JSON lines (`*.jsonl`) or JSON lists (`*.json`), gzipped or not, or Parquet (`*.parquet`). They are read in
the order of their names; blank lines are skipped.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from assay_training.records.record import RecordError

Kind = TypeVar("Kind")

# A row is read for a run, whose YAML declares how, or for `assay evaluate`, whose options do. Errors name both.
FIELD_OPTION = "`--field` of `assay evaluate`"
GAP_OPTION = "`--largest-gap` of `assay evaluate`"


def leave_out(name: str) -> str:
    """Return how to leave a field out, in a run's YAML and on the command line."""
    return f"`fields: {{{name}: null}}` (`--field {name}=` of `assay evaluate`)"


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        where: file and line, or data set and number, for messages.
        subset: file name without endings: `harmless-base` of `harmless-base.test.jsonl.gz`.
        fields: what it holds.
        origins: how the row itself calls fields that have been renamed, for messages.
    """

    where: str
    subset: str
    fields: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)

    def named(self, name: str) -> str:
        """Return the name of a field for a message, in quotes, with the row's own name if that is another."""
        return f"{name!r} (mapped from {self.origins[name]})" if name in self.origins else repr(name)

    def renamed(self, fields: Mapping[str, str | list[str] | None]) -> "Row":
        """Return the row with its fields under other names.

        Args:
            fields: new name -> the row's own name, several of them for a list without its nulls, or None to leave the
                field `new name` out.

        Raises:
            RecordError: the row has no field of that name.
        """
        taken = {
            one for origin in fields.values() if origin for one in ([origin] if isinstance(origin, str) else origin)
        }
        missing = sorted(taken - self.fields.keys())
        if missing:
            there = ", ".join(self.fields)
            raise self.error(
                f"there is no field {missing[0]!r}, which `fields` ({FIELD_OPTION}) names; there are {there}"
            )
        found = {name: value for name, value in self.fields.items() if name not in taken and name not in fields}
        for name, origin in fields.items():
            if isinstance(origin, str):
                found[name] = self.fields[origin]
            elif origin is not None:
                found[name] = [self.fields[one] for one in origin if self.fields[one] is not None]
        origins = {n: o if isinstance(o, str) else " and ".join(o) for n, o in fields.items() if o is not None}
        return Row(self.where, self.subset, found, origins)

    def get(self, name: str, kind: type[Kind]) -> Kind:
        """The field `name`, which may lead into nested objects by dots.

        Raises:
            RecordError: it is missing or of another type.
        """
        value: Any = self.fields
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                value = float(value)
            except OverflowError:
                raise self.error(f"field {self.named(name)} is too large a number") from None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(f"field {self.named(name)} is not a {kind.__name__}")
        return value

    def text(self, name: str) -> str:
        """The text `name`, which is not blank.

        Raises:
            RecordError: it is missing, no text, or blank.
        """
        value = self.get(name, str)
        if not value.strip():
            raise self.error(f"field {self.named(name)} is empty")
        return value

    def error(self, reason: str) -> RecordError:
        """An error that says where."""
        return RecordError(f"{self.where}: {reason}")


_ENDINGS = ("*.jsonl", "*.jsonl.gz", "*.json", "*.json.gz", "*.parquet")
_NO_ROWS = frozenset(
    {"dataset_info.json", "dataset_infos.json", "state.json"}
)  # what `datasets` writes beside its rows


def files(folder: Path) -> list[Path]:
    """The files of a data set, a folder or a file, in the order in which they are read.

    Raises:
        RecordError: there are none.
    """
    if folder.is_file():
        return [folder]
    found = sorted(path for ending in _ENDINGS for path in folder.glob(ending) if path.name not in _NO_ROWS)
    if not folder.exists():
        raise RecordError(f"{folder}: no such folder")
    if not found:
        raise RecordError(f"{folder}: no {', '.join(_ENDINGS)} files")
    return found


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows_of_files(folder: Path) -> Iterator[Row]:
    """Return all rows of a folder.

    Raises:
        RecordError: a file is broken, or a row is not an object.
    """
    return (row for path in files(folder) for row in rows_of_any(path))


def rows_of_file(path: Path, *, growing: bool = False) -> Iterator[Row]:
    """All rows of a file.

    Args:
        path: of the file.
        growing: whether somebody writes to it, or was killed while doing so: half a line at its end is no row then.

    Raises:
        RecordError: the file is missing or broken, or a line is not a JSON object in UTF-8.
    """
    if not path.is_file():
        raise RecordError(f"{path}: no such file")
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = _parsed(line)
        except (ValueError, RecursionError) as error:
            if growing and not line.endswith(b"\n"):
                return
            raise RecordError(f"{where}: {error}") from error
        if not isinstance(fields, dict):
            raise RecordError(f"{where}: not an object")
        yield Row(where, path.name.split(".")[0], fields)


def rows_of_any(path: Path) -> Iterator[Row]:
    """Return all rows of a file: JSON lines, a JSON list or Parquet, as its name says.

    A file `*.json` that holds JSON lines, as published sets do, is read as those.

    Raises:
        RecordError: the file is missing or broken, or a row is not an object.
    """
    if path.suffix == ".parquet":
        return rows_of_parquet(path)
    return rows_of_file(path) if ".jsonl" in path.suffixes or _holds_lines(path) else rows_of_list(path)


def _holds_lines(path: Path) -> bool:
    """Return whether the first line is an object of its own, and others follow."""
    if not path.is_file():
        return False
    first = list(islice((line for line in _lines(path) if line.strip()), 2))
    try:
        return len(first) == 2 and isinstance(_parsed(first[0]), dict)
    except (ValueError, RecursionError):
        return False


def rows_of_parquet(path: Path) -> Iterator[Row]:
    """Return all rows of a Parquet file, by `datasets`.

    Raises:
        RecordError: the file is missing or broken.
    """
    from datasets import load_dataset  # noqa: PLC0415 - heavy, and few runs need it

    if not path.is_file():
        raise RecordError(f"{path}: no such file")
    try:
        for number, fields in enumerate(
            load_dataset("parquet", data_files=str(path), split="train", streaming=True), 1
        ):
            yield Row(f"{path}: row {number}", path.name.split(".")[0], fields)
    except (OSError, ValueError) as error:
        raise error if isinstance(error, RecordError) else RecordError(f"{path}: {error}") from error


def rows_of_list(path: Path) -> Iterator[Row]:
    """All rows of a file that is one JSON list, gzipped or not.

    Raises:
        RecordError: the file is missing or broken, or is no list of objects.
    """
    for number, fields in enumerate(json_of(path, list), start=1):
        where = f"{path}: row {number}"
        if not isinstance(fields, dict):
            raise RecordError(f"{where}: not an object")
        yield Row(where, path.name.split(".")[0], fields)


def json_of(path: Path, kind: type[Kind]) -> Kind:
    """The JSON of a file, gzipped or not.

    Raises:
        RecordError: the file is missing or broken, or holds something else.
    """
    if not path.is_file():
        raise RecordError(f"{path}: no such file")
    try:
        value = _parsed(b"".join(_lines(path)))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, RecordError) else RecordError(f"{path}: {error}") from error
    if not isinstance(value, kind):
        raise RecordError(f"{path}: not a JSON {'object' if kind is dict else kind.__name__}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _parsed(content: bytes) -> object:
    value: object = _DECODER.decode(content.decode("utf-8-sig"))
    if b"\\ud" in content or b"\\uD" in content:  # half of a surrogate pair is no text, and could be written nowhere
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _lines(path: Path) -> Iterator[bytes]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
        try:
            yield from stream
        except (OSError, EOFError, zlib.error) as error:
            raise RecordError(f"{path}: {error}") from error


def rows_of_hub(name: str, config: str | None, folder: str | None, revision: str, split: str) -> Iterator[Row]:
    """All rows of one split of a data set on the hub, or of a folder that `datasets` can load.

    Args:
        name: as `datasets.load_dataset` takes it.
        config: which of the set's configurations; None for its only one, or its default.
        folder: of the set, to which its files are restricted; it is the rows' subset, else the split is.
        revision: commit.
        split: of the data set.

    Raises:
        RecordError: there is no such set, it cannot be reached, or a file of it is broken.
    """
    from datasets import load_dataset  # noqa: PLC0415 - heavy, and few runs need it
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    where = " ".join(filter(None, (f"{name}@{revision}", config, folder, split)))
    try:
        rows = load_dataset(name, config, data_dir=folder, revision=revision, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
        raise RecordError(f"{where}: {error}{cause}") from error
    for number, fields in enumerate(rows, start=1):
        yield Row(f"{where}:{number}", folder or split, fields)
