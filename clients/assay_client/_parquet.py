"""Read and write Parquet by pyarrow, which is imported only where a file with that name is used."""

import base64
import json
import math
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

from assay_client.errors import InvalidInput

SUFFIX = ".parquet"
READ_ROWS = 1024  # decoded at once
GROUP_ROWS = 10_000  # of a row group that is written; fixed, so that equal rows give equal files

Module: TypeAlias = Any  # pyarrow has no types


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

    Values that JSON does not have become text: times as in ISO 8601, bytes as base64, others as Python prints them.
    Numbers that JSON does not have, such as NaN, become null.

    Raises:
        InvalidInput: the file is not Parquet or is damaged, or pyarrow is not installed.
    """
    arrow, parquet = import_pyarrow(source)
    index = 0
    try:
        # Not prefetched, so that memory holds one row group at most.
        with parquet.ParquetFile(source, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=READ_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    yield f"[{index}]", {key: _to_json(value) for key, value in row.items() if value is not None}
                    index += 1
    except arrow.ArrowException as error:
        raise InvalidInput(f"{source}: cannot be read as Parquet: {error}") from error


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
            return base64.b64encode(value).decode()
        case date() | time():
            return value.isoformat()
        case timedelta() | Decimal() | UUID():
            return str(value)
    return value


def write_parquet(lines: Path, target: Path) -> None:
    """Write scored rows of JSON lines as one Parquet file, which appears whole; memory holds one row group.

    The columns are `index`, `id`, `score`, `signals` (a struct for each signal), `error` and `extra` (JSON as text). A
    column is null where a row does not have it.

    Raises:
        InvalidInput: pyarrow is not installed.
    """
    arrow, parquet = import_pyarrow(target)
    fresh = target.with_name(f"{target.name}.new")
    schema = _build_schema(arrow, next((row["signals"] for row in _read_rows(lines) if "signals" in row), {}))
    with parquet.ParquetWriter(fresh, schema, compression="zstd") as writer:
        rows = _read_rows(lines)
        while part := list(islice(rows, GROUP_ROWS)):
            writer.write_batch(arrow.RecordBatch.from_pylist(list(_fold_extra(part)), schema=schema))
    with fresh.open("rb") as file:
        os.fsync(file.fileno())  # the name must not reach the disk before the rows
    fresh.replace(target)


def _read_rows(lines: Path) -> Iterator[dict[str, Any]]:
    with lines.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _fold_extra(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    # As text, since the same key of JSON rows may have values of different types.
    for row in rows:
        yield {**row, "extra": json.dumps(row["extra"], ensure_ascii=False)} if "extra" in row else row


def _build_schema(arrow: Module, signals: Mapping[str, Mapping[str, object]]) -> Module:
    """Return the columns; every scored row of a file has the same signals, since one model scored all of them."""
    text, number, count = arrow.string(), arrow.float64(), arrow.int64()
    error = [("code", text), ("message", text), ("param", text), ("retryable", arrow.bool_())]
    columns = [("index", count), ("id", text), ("score", number)]
    if signals:
        # Only absolute signals have `prob`; a column for all of them makes files alike.
        numbers = [("logit", number), ("prob", number)]
        steps = arrow.list_(arrow.struct([("index", count), ("token", count), *numbers]))
        kinds = {
            name: arrow.struct(
                numbers + [(key, steps if key == "steps" else count) for key in value if key not in ("logit", "prob")]
            )
            for name, value in signals.items()
        }
        columns.append(("signals", arrow.struct(list(kinds.items()))))
    return arrow.schema([*columns, ("error", arrow.struct(error)), ("extra", text)])
