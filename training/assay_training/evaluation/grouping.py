"""Group rows by their fields, such as a data set, a category or a subset."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from assay_training.records.record import RecordError
from assay_training.records.rows import Row

LONGEST = 80  # characters; a text that is longer, or has several lines, is not the name of a group


def check_field(rows: Iterable[Row], field: str) -> None:
    """Check that at least one row has a field to group by.

    Raises:
        RecordError: no row has it; the message lists the fields of the first row.
    """
    first = None
    for row in rows:
        first = first or row
        if _find_value(row, field) is not None:
            return
    if first is not None:
        raise RecordError(f"{first.where}: no row has a field {field!r} to group by; fields: {', '.join(first.fields)}")


def read_group(row: Row, field: str) -> str:
    """Return the group of a row: the field's text or number, or `no FIELD` where it is missing or null.

    Args:
        row: row to group.
        field: name of the field; dots lead into nested objects.

    Raises:
        RecordError: the field holds a long text, a list or an object.
    """
    value = _find_value(row, field)
    if value is None:
        return f"no {field}"
    if isinstance(value, int | float) or (isinstance(value, str) and is_short(value)):
        return format_name(value)
    raise row.error(
        f"field {field!r} cannot be a group; a group is a number, or one line of at most {LONGEST} characters"
    )


def is_short(value: object) -> bool:
    """Return whether a value can be the name of a group."""
    return isinstance(value, str) and len(value) <= LONGEST and len(value.splitlines()) == 1


def format_name(value: str | float) -> str:
    """Return a name as a text, and a whole number without its fraction.

    pandas writes 375 as 375.0 in a column where some rows have no value.
    """
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def name_groups(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, ...]]:
    """Return the names of every row's groups: one for each field, and one for the combination of all fields.

    If a value occurs in two fields, every name contains its field: `category=koala`.

    Args:
        rows: each row's value by field; a row may lack some of the fields.
    """
    fields = {field for row in rows for field in row}
    counts = Counter(value for _, value in {pair for row in rows for pair in row.items()})
    is_shared = any(count > 1 for count in counts.values())
    names = []
    for row in rows:
        named = [f"{field}={value}" if is_shared else value for field, value in row.items()]
        # A row that lacks a field is in no combination, as this would be the same group as one of its fields.
        names.append((*named, *([" / ".join(named)] if len(named) == len(fields) > 1 else [])))
    return names


def is_missing(value: object) -> bool:
    """Return whether a value is null, NaN (as pandas writes missing values) or a blank text."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def _find_value(row: Row, field: str) -> object:
    """Return a field's value, or `None` where it is missing."""
    value: object = row.fields.get(field)
    # The whole name is looked up first: a field's own name may contain dots.
    if field not in row.fields:
        value = row.fields
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    return None if is_missing(value) else value
