"""Groups that fields of the rows form: a data set, a category, a subset."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from assay_training.records.record import RecordError
from assay_training.records.rows import Row

LONGEST = 80  # characters of a group's name; a text that is longer, or has several lines, is no name


def require(rows: Iterable[Row], field: str) -> None:
    """Check that a field to group by is there at all.

    Raises:
        RecordError: no row has it; the message lists the fields of the first row.
    """
    first = None
    for row in rows:
        first = first or row
        if _found(row, field) is not None:
            return
    if first is not None:
        raise RecordError(f"{first.where}: no row has a field {field!r} to group by; fields: {', '.join(first.fields)}")


def group(row: Row, field: str) -> str:
    """Return the group that a row is in: the field's text or number, or `no FIELD` where it is missing or null.

    Args:
        row: of the file.
        field: its name, which may lead into nested objects by dots.

    Raises:
        RecordError: the field holds a long text, a list or an object.
    """
    value = _found(row, field)
    if value is None:
        return f"no {field}"
    if isinstance(value, int | float) or (isinstance(value, str) and is_short(value)):
        return spelled(value)
    raise row.error(f"field {field!r} is no group; a group is a number, or one line of at most {LONGEST} characters")


def is_short(value: object) -> bool:
    """Return whether a value can be the name of a group."""
    return isinstance(value, str) and len(value) <= LONGEST and len(value.splitlines()) == 1


def spelled(value: str | float) -> str:
    """Return a name as a text; pandas writes the whole number 375 as 375.0 where other rows of the column have none."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def names(ways: Sequence[Mapping[str, str]]) -> list[tuple[str, ...]]:
    """Return the names of the groups that every row is in: one for each way of grouping, and one for all ways together.

    Where some word is a group in two ways, every name says its way: `category=koala`.

    Args:
        ways: by row, its group by the field that says it; a row may lack some of them.
    """
    fields = {field for of in ways for field in of}
    words = Counter(word for _, word in {pair for of in ways for pair in of.items()})
    shared = any(count > 1 for count in words.values())
    found = []
    for of in ways:
        named = [f"{field}={word}" if shared else word for field, word in of.items()]
        found.append((*named, *([" / ".join(named)] if len(named) == len(fields) > 1 else [])))
    return found


def missing(value: object) -> bool:
    """Return whether a field says nothing: null, NaN (as pandas writes missing values), or a blank text."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def _found(row: Row, field: str) -> object:
    """Return the field's value, looked up by its whole name first, or `None` where it says nothing."""
    value: object = row.fields.get(field)
    if field not in row.fields:
        value = row.fields
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    return None if missing(value) else value
