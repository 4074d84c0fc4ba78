"""What every evaluation returns: records, how they are shown, and what was noticed on the way."""

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
    """A column as it is shown.

    Attributes:
        heading: above it.
        cell: a record's text in it.
        detail: whether it is shown on a page alone, for want of room on a terminal.
        wraps: whether its cells may be broken over lines on a narrow terminal; numbers never are.
    """

    heading: str
    cell: Callable[[Record], str]
    detail: bool = False
    wraps: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot.

    Attributes:
        caption: above it; says what it shows.
        draw: makes it; not before it is looked at.
    """

    caption: str
    draw: Callable[[], Figure]

    @property
    def svg(self) -> str:
        """As an SVG element; names of models and sources are text, not formulas."""
        figure, buffer = self.draw(), io.StringIO()
        for label in figure.findobj(Text):
            label.set_parse_math(False)
        figure.savefig(buffer, format="svg", dpi=120)
        return buffer.getvalue()[buffer.getvalue().index("<svg") :]


@dataclass(frozen=True, slots=True)
class Table:
    """The result of an evaluation.

    Attributes:
        title: what was measured.
        records: all numbers, as they are written to JSON.
        columns: those of them that are shown, in order.
        lines: those of the records that are shown, where the others say the same again; None for all.
        notes: how to read them, and what was left out.
        pictures: plots of them.
    """

    title: str
    records: tuple[Record, ...]
    columns: tuple[Column, ...]
    lines: tuple[Record, ...] | None = None
    notes: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()

    @property
    def shown(self) -> tuple[Record, ...]:
        """What a reader sees."""
        return self.records if self.lines is None else self.lines


def text(heading: str, key: str, missing: str = MISSING) -> Column:
    """Return a column of texts."""
    return Column(heading, lambda record: missing if record[key] is None else str(record[key]), wraps=True)


def whole(heading: str, key: str) -> Column:
    """Return a column of whole numbers."""
    return Column(heading, lambda record: MISSING if record[key] is None else str(record[key]))


def cut(heading: str) -> Column:
    """A column of sources; a strength of preference stands in the place of the source above it, by its first word."""
    return Column(
        heading, lambda r: r["source"] if r["strength"] is None else f"… {r['strength'].split()[0]}", wraps=True
    )


def number(heading: str, key: str, format_: str, *, detail: bool = False) -> Column:
    """A column of numbers in a format of `str.format`: `.3f`, `.1%`."""
    return Column(heading, lambda record: MISSING if record[key] is None else format(record[key], format_), detail)


def interval(heading: str, key: str, format_: str, *, detail: bool = False) -> Column:
    """A column of intervals."""

    def cell(record: Record) -> str:
        ends = record[key]
        return MISSING if ends is None else f"{ends[0]:{format_}}–{ends[1]:{format_}}"

    return Column(heading, cell, detail)
