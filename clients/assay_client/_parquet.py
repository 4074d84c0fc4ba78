"""Read and write Parquet by pyarrow, which is imported only where a file with that name is used."""

import base64
import json
import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias
from uuid import UUID

from assay_client._atomic import write_atomically
from assay_client.errors import InvalidInput

SUFFIX = ".parquet"
READ_ROWS = 1024  # decoded at once
GROUP_ROWS = 10_000  # of a row group that is written; fixed, so that equal rows give equal files

Module: TypeAlias = Any  # pyarrow has no types
IdColumn: TypeAlias = Literal["text", "int64", "json"]


class Converted(str):
    """The text of a value that JSON does not have; it may be copied to the output, but not scored.

    Attributes:
        kind: the type of the value.
    """

    __slots__ = ("kind",)
    kind: str

    @classmethod
    def of(cls, text: str, value: object) -> "Converted":
        """Return the text of a value."""
        made = cls(text)
        made.kind = type(value).__name__
        return made


def find_converted(value: object) -> str | None:
    """Return the type of the first value in `value` that JSON does not have; None if JSON has all of them."""
    if isinstance(value, Converted):
        return value.kind
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((kind for part in parts if (kind := find_converted(part)) is not None), None)


def is_parquet(path: str | Path) -> bool:
    """Return whether a path is that of a Parquet file, by its name."""
    return str(path).lower().endswith(SUFFIX)


def import_pyarrow(path: str | Path) -> tuple[Module, Module]:
    """Return `pyarrow` and `pyarrow.parquet`.

    Raises:
        InvalidInput: pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: PLC0415
        import pyarrow.parquet  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"{path}: Parquet files need {error.name}: pip install pyarrow, or the extra `parquet` of this package"
        ) from error
    return pyarrow, pyarrow.parquet


def read_parquet(source: str) -> Generator[tuple[str, object], None, None]:
    """Yield the place and the object of each row, decoded a few at a time; a column that is null is not in the object.

    Values that JSON does not have become `Converted` text: times and durations as in ISO 8601, bytes as base64, others
    as Python prints them. Numbers that JSON does not have, such as NaN, become null.

    Raises:
        InvalidInput: the file is not Parquet or is damaged, pyarrow is not installed, or a time with nanoseconds needs
            pandas.
    """
    arrow, parquet = import_pyarrow(source)
    index = 0
    try:
        # Not prefetched, so that memory holds one row group at most.
        with parquet.ParquetFile(source, pre_buffer=False) as file:
            _check_names(file.schema_arrow, source)
            for batch in file.iter_batches(batch_size=READ_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    yield f"[{index}]", {key: _to_json(value) for key, value in row.items() if value is not None}
                    index += 1
    # pyarrow raises a ValueError for times that Python cannot hold, and says that pandas can.
    except (arrow.ArrowException, ValueError) as error:
        raise InvalidInput(f"{source}: cannot be read as Parquet: {error}") from error


def _check_names(fields: Iterable[Any], source: str) -> None:
    """Raise InvalidInput if two columns, or two fields of a struct, have one name: a row would keep only the last."""
    names: set[str] = set()
    for field in fields:
        if field.name in names:
            raise InvalidInput(f"{source}: column `{field.name}` occurs twice, and one of its values would be lost")
        names.add(field.name)
        _check_names((field.type.field(index) for index in range(field.type.num_fields)), source)


def _to_json(value: object) -> object:  # noqa: PLR0911  # one for each kind of value
    """Return a value of a column as JSON can hold it."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case list() | tuple():  # a map is a list of pairs
            return [_to_json(part) for part in value]
        case dict():
            return {key: _to_json(part) for key, part in value.items()}
        case bytes():
            return Converted.of(base64.b64encode(value).decode(), value)
        case date() | time():
            return Converted.of(value.isoformat(), value)
        case timedelta():
            return Converted.of(format_duration(value), value)
        case Decimal() | UUID():
            return Converted.of(str(value), value)
    return value


def format_duration(value: timedelta) -> str:
    """Return a duration as in ISO 8601, in days, hours, minutes and seconds: `P1DT2H3M4.5S`."""
    nanoseconds = getattr(value, "nanoseconds", 0)  # of pandas' Timedelta, in which pyarrow returns them
    whole = ((value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds) * 1000 + nanoseconds
    seconds, fraction = divmod(abs(whole), 1_000_000_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    last = f"{seconds}.{fraction:09d}".rstrip("0").rstrip(".") if fraction else f"{seconds}" if seconds else ""
    parts = ((hours, f"{hours}H"), (minutes, f"{minutes}M"), (last, f"{last}S"))
    clock = "".join(text for size, text in parts if size)
    text = f"{days}D" * bool(days) + f"T{clock}" * bool(clock)
    return "-" * (whole < 0) + f"P{text or 'T0S'}"


def write_parquet(lines: Path, target: Path) -> None:
    """Write scored rows of JSON lines as one Parquet file, which appears whole; memory holds one row group.

    The columns are `index`, `id`, `score`, `signals` (a struct for each signal), `error` and `extra` (JSON as text). A
    column is null where a row does not have it. `id` is text if all ids are, int64 if all are integers, and otherwise
    JSON as text.

    Raises:
        InvalidInput: pyarrow is not installed.
    """
    arrow, parquet = import_pyarrow(target)
    # Two passes over the rows: the columns must be known before the first row is written.
    signals, ids = _learn_columns(_read_rows(lines))
    schema = _build_schema(arrow, signals, ids)
    folded = ("extra", "id") if ids == "json" else ("extra",)
    with write_atomically(target) as fresh, parquet.ParquetWriter(fresh, schema, compression="zstd") as writer:
        rows = _read_rows(lines)
        while part := list(islice(rows, GROUP_ROWS)):
            writer.write_batch(arrow.RecordBatch.from_pylist([_fold(row, folded) for row in part], schema=schema))


def _read_rows(lines: Path) -> Iterator[dict[str, Any]]:
    with lines.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _learn_columns(rows: Iterable[dict[str, Any]]) -> tuple[Mapping[str, Mapping[str, object]], IdColumn]:
    """Return the signals of the first row that has a score, and the type of the ids."""
    signals: Mapping[str, Mapping[str, object]] = {}
    kinds: set[IdColumn] = set()
    for row in rows:
        signals = signals or row.get("signals", {})
        if "id" in row:
            kinds.add(_find_id_column(row["id"]))
    return signals, kinds.pop() if len(kinds) == 1 else "json" if kinds else "text"


def _find_id_column(id: object) -> IdColumn:
    if isinstance(id, str):
        return "text"
    return "int64" if type(id) is int and -(2**63) <= id < 2**63 else "json"  # not a bool, which is an int, too


def _fold(row: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    # As text, since the same key of JSON rows may have values of different types.
    return row | {name: json.dumps(row[name], ensure_ascii=False) for name in names if name in row}


def _build_schema(arrow: Module, signals: Mapping[str, Mapping[str, object]], ids: IdColumn) -> Module:
    """Return the columns; every scored row of a file has the same signals, since one model scored all of them."""
    # float64, because scores of JSON are doubles and must not be rounded.
    text, number, count = arrow.string(), arrow.float64(), arrow.int64()
    error = [("code", text), ("message", text), ("param", text), ("retryable", arrow.bool_())]
    columns = [("index", count), ("id", count if ids == "int64" else text), ("score", number)]
    if signals:
        # Only absolute signals have `prob`; a column for all of them makes files alike.
        numbers = [("logit", number), ("prob", number)]
        others = {"std": number, "steps": arrow.list_(arrow.struct([("index", count), ("token", count), *numbers]))}
        kinds = {
            name: arrow.struct(
                numbers + [(key, others.get(key, count)) for key in value if key not in ("logit", "prob")]
            )
            for name, value in signals.items()
        }
        columns.append(("signals", arrow.struct(list(kinds.items()))))
    return arrow.schema([*columns, ("error", arrow.struct(error)), ("extra", text)])
