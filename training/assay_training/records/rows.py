"""Read the rows of a data set, from files or from the hub, as mappings that know their place.

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

from assay_training.records.record import FIELD_OPTION, RecordError

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a data set, with its place for messages.

    Attributes:
        where: file and line, or data set and row number.
        subset: file name without endings, such as `harmless-base` for `harmless-base.test.jsonl.gz`.
        fields: value of each field, by its name.
        origins: the row's own name of each renamed field.
    """

    where: str
    subset: str
    fields: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)

    def named(self, name: str) -> str:
        """Return the quoted name of a field for a message, with the row's own name if the field was renamed."""
        return f"{name!r} (mapped from {self.origins[name]})" if name in self.origins else repr(name)

    def renamed(self, fields: Mapping[str, str | list[str] | None]) -> "Row":
        """Return the row with its fields under other names.

        Args:
            fields: new name of each field, with the row's own name. A list of own names makes a list of their values
                without nulls; None drops the field.

        Raises:
            RecordError: the row has no field of an own name.
        """
        taken = {
            name for origin in fields.values() if origin for name in ([origin] if isinstance(origin, str) else origin)
        }
        missing = sorted(taken - self.fields.keys())
        if missing:
            known = ", ".join(self.fields)
            raise self.error(
                f"field {missing[0]!r}, which `fields` ({FIELD_OPTION}) names, is missing; the row has {known}"
            )
        renamed = {name: value for name, value in self.fields.items() if name not in taken and name not in fields}
        for name, origin in fields.items():
            if isinstance(origin, str):
                renamed[name] = self.fields[origin]
            elif origin is not None:
                renamed[name] = [self.fields[own] for own in origin if self.fields[own] is not None]
        origins = {n: o if isinstance(o, str) else " and ".join(o) for n, o in fields.items() if o is not None}
        return Row(self.where, self.subset, renamed, origins)

    def get(self, name: str, kind: type[Kind]) -> Kind:
        """Return the value of a field; dots in the name lead into nested objects.

        Args:
            name: name of the field.
            kind: type of the value; a whole number is accepted as a float, and a bool is not a number.

        Raises:
            RecordError: the field is missing or has another type.
        """
        value: Any = self.fields
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        # JSON may write 1 for 1.0, and whole numbers that are too large for a float.
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                value = float(value)
            except OverflowError:
                raise self.error(f"field {self.named(name)} is too large a number") from None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(f"field {self.named(name)} is not a {kind.__name__}")
        return value

    def text(self, name: str) -> str:
        """Return the value of a field that is a text and not blank.

        Raises:
            RecordError: the field is missing, is not a text, or is blank.
        """
        value = self.get(name, str)
        if not value.strip():
            raise self.error(f"field {self.named(name)} is empty")
        return value

    def error(self, reason: str) -> RecordError:
        """Build an error whose message begins with the place of the row."""
        return RecordError(f"{self.where}: {reason}")


_ENDINGS = ("*.jsonl", "*.jsonl.gz", "*.json", "*.json.gz", "*.parquet")
_NO_ROWS = frozenset(
    {"dataset_info.json", "dataset_infos.json", "state.json"}
)  # files that `datasets` writes beside its rows


def list_data_files(folder: Path) -> list[Path]:
    """Return the files of a data set, which is a folder or a file, in the order of reading.

    Raises:
        RecordError: the folder does not exist or has no data files.
    """
    if folder.is_file():
        return [folder]
    found = sorted(path for ending in _ENDINGS for path in folder.glob(ending) if path.name not in _NO_ROWS)
    if not folder.exists():
        raise RecordError(f"{folder}: no such folder")
    if not found:
        raise RecordError(f"{folder}: the folder has no files {', '.join(_ENDINGS)}")
    return found


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_folder_rows(folder: Path) -> Iterator[Row]:
    """Return all rows of a folder.

    Raises:
        RecordError: a file is broken, or a row is not an object.
    """
    return (row for path in list_data_files(folder) for row in read_file_rows(path))


def read_json_lines(path: Path, *, growing: bool = False) -> Iterator[Row]:
    """Yield all rows of a file of JSON lines.

    Args:
        path: file.
        growing: True for a file that is being written, or whose writer was killed: an incomplete last line is skipped.

    Raises:
        RecordError: the file is missing or broken, or a line is not a JSON object in UTF-8.
    """
    if not path.is_file():
        raise RecordError(f"{path}: no such file")
    for number, line in enumerate(_read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = _parse(line)
        except (ValueError, RecursionError) as error:
            if growing and not line.endswith(b"\n"):
                return
            raise RecordError(f"{where}: {error}") from error
        if not isinstance(fields, dict):
            raise RecordError(f"{where}: not an object")
        yield Row(where, path.name.split(".")[0], fields)


def read_file_rows(path: Path) -> Iterator[Row]:
    """Return all rows of a file: JSON lines, a JSON list or Parquet, by its name.

    A file `*.json` that holds JSON lines, as some published sets have it, is read as JSON lines.

    Raises:
        RecordError: the file is missing or broken, or a row is not an object.
    """
    if path.suffix == ".parquet":
        return read_parquet_rows(path)
    return read_json_lines(path) if ".jsonl" in path.suffixes or _holds_lines(path) else read_json_list(path)


def _holds_lines(path: Path) -> bool:
    """Return whether the first line is a complete JSON object and another line follows."""
    if not path.is_file():
        return False
    first = list(islice((line for line in _read_lines(path) if line.strip()), 2))
    try:
        return len(first) == 2 and isinstance(_parse(first[0]), dict)
    except (ValueError, RecursionError):
        return False


def read_parquet_rows(path: Path) -> Iterator[Row]:
    """Yield all rows of a Parquet file, read by `datasets`.

    Raises:
        RecordError: the file is missing or broken.
    """
    from datasets import load_dataset  # noqa: PLC0415 - heavy, and few runs need it

    if not path.is_file():
        raise RecordError(f"{path}: no such file")
    try:
        # Streaming reads the file itself, without a copy in the cache of `datasets`.
        for number, fields in enumerate(
            load_dataset("parquet", data_files=str(path), split="train", streaming=True), 1
        ):
            yield Row(f"{path}: row {number}", path.name.split(".")[0], fields)
    except (OSError, ValueError) as error:
        raise error if isinstance(error, RecordError) else RecordError(f"{path}: {error}") from error


def read_json_list(path: Path) -> Iterator[Row]:
    """Yield all rows of a file that is one JSON list, gzipped or not.

    Raises:
        RecordError: the file is missing or broken, or is not a list of objects.
    """
    for number, fields in enumerate(read_json_value(path, list), start=1):
        where = f"{path}: row {number}"
        if not isinstance(fields, dict):
            raise RecordError(f"{where}: not an object")
        yield Row(where, path.name.split(".")[0], fields)


def read_json_value(path: Path, kind: type[Kind]) -> Kind:
    """Return the JSON value of a file, gzipped or not.

    Raises:
        RecordError: the file is missing or broken, or its value has another type than `kind`.
    """
    if not path.is_file():
        raise RecordError(f"{path}: no such file")
    try:
        value = _parse(b"".join(_read_lines(path)))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, RecordError) else RecordError(f"{path}: {error}") from error
    if not isinstance(value, kind):
        raise RecordError(f"{path}: not a JSON {'object' if kind is dict else kind.__name__}")
    return value


def _refuse_equal_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python's json module would keep the last of two equal keys silently.
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_refuse_equal_keys)


def _parse(content: bytes) -> object:
    # utf-8-sig also accepts a byte order mark, which some published files have.
    value: object = _DECODER.decode(content.decode("utf-8-sig"))
    if b"\\ud" in content or b"\\uD" in content:  # half of a surrogate pair is valid JSON, but cannot be encoded
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _read_lines(path: Path) -> Iterator[bytes]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
        try:
            yield from stream
        except (OSError, EOFError, zlib.error) as error:
            raise RecordError(f"{path}: {error}") from error


def read_hub_rows(name: str, config: str | None, folder: str | None, revision: str, split: str) -> Iterator[Row]:
    """Yield all rows of one split of a data set on the hub, or of a folder that `datasets` can load.

    Args:
        name: id of the data set, or path of a folder, for `datasets.load_dataset`.
        config: configuration of the data set; None for its only one or its default.
        folder: folder of the data set to which its files are restricted, also the rows' subset; None for all files,
            with the split as subset.
        revision: commit of the data set.
        split: split of the data set.

    Raises:
        RecordError: the data set does not exist or cannot be reached, or one of its files is broken.
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
