"""Define the result of every evaluation: a table of records, with columns, notes and plots."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text

Record = Mapping[str, Any]
MISSING = "–"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the printed table and of the HTML page.

    Attributes:
        heading: text above the column.
        cell: function from a record to the text of its cell.
        detail: whether the column is only in the HTML page, since a terminal is too narrow for all columns.
        wraps: whether its cells may be wrapped on a narrow terminal; numbers never are.
    """

    heading: str
    cell: Callable[[Record], str]
    detail: bool = False
    wraps: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot with its caption.

    Attributes:
        caption: text above the plot that says what it shows.
        draw: function that makes the figure; it is called only when a page is written.
    """

    caption: str
    draw: Callable[[], Figure]

    @property
    def svg(self) -> str:
        """Return the plot as an SVG element."""
        figure, buffer = self.draw(), io.StringIO()
        # Names of models and sources may contain $, which matplotlib would parse as a formula.
        for label in figure.findobj(Text):
            label.set_parse_math(False)
        figure.savefig(buffer, format="svg", dpi=120)
        # Without the XML declaration before the element, which an HTML page must not contain.
        return buffer.getvalue()[buffer.getvalue().index("<svg") :]


@dataclass(frozen=True, slots=True)
class Table:
    """The result of an evaluation.

    Attributes:
        title: name of the measured quantity.
        records: all numbers, as they are written to JSON.
        columns: columns in the order in which they are shown.
        lines: records that are shown if the others only repeat them in another form; `None` to show all records.
        notes: sentences on how to read the columns and on what was dropped.
        pictures: plots of the records.
    """

    title: str
    records: tuple[Record, ...]
    columns: tuple[Column, ...]
    lines: tuple[Record, ...] | None = None
    notes: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()

    @property
    def shown(self) -> tuple[Record, ...]:
        """Return the records that are shown."""
        return self.records if self.lines is None else self.lines


def text_column(heading: str, key: str, missing: str = MISSING) -> Column:
    """Return a column of texts.

    Args:
        heading: text above the column.
        key: key of the records.
        missing: text of a cell whose record has `None`.
    """
    return Column(heading, lambda record: missing if record[key] is None else str(record[key]), wraps=True)


def integer_column(heading: str, key: str) -> Column:
    """Return a column of integers."""
    return Column(heading, lambda record: MISSING if record[key] is None else str(record[key]))


def source_column(heading: str) -> Column:
    """Return a column of sources, in which a strength of preference is shown as `…` and its first word.

    Its line belongs to the source above it.
    """
    return Column(
        heading, lambda r: r["source"] if r["strength"] is None else f"… {r['strength'].split()[0]}", wraps=True
    )


def number_column(heading: str, key: str, format_: str, *, detail: bool = False) -> Column:
    """Return a column of numbers.

    Args:
        heading: text above the column.
        key: key of the records.
        format_: format specification of Python, such as `.3f` or `.1%`.
        detail: whether the column is only in the HTML page.
    """
    return Column(heading, lambda record: MISSING if record[key] is None else format(record[key], format_), detail)


def interval_column(heading: str, key: str, format_: str, *, detail: bool = False) -> Column:
    """Return a column of intervals, `low–high`; the arguments are those of `number_column`."""

    def cell(record: Record) -> str:
        bounds = record[key]
        return MISSING if bounds is None else f"{bounds[0]:{format_}}–{bounds[1]:{format_}}"

    return Column(heading, cell, detail)
