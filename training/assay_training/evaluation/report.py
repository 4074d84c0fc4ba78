"""A table on the terminal, as JSON, and as a page that stands by itself."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import rich.table
from jinja2 import Environment
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape

from assay_training.evaluation.layout import Extent, fit, line
from assay_training.evaluation.table import Table


@dataclass(frozen=True, slots=True)
class Provenance:
    """What it takes to repeat a table.

    Attributes:
        command: as it was typed.
        sha256: of every file that was read, by its path.
    """

    command: str
    sha256: Mapping[str, str]

    @classmethod
    def of(cls, command: str, paths: Iterable[Path]) -> "Provenance":
        """Hashes the files."""
        return cls(command, {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths})


def show(table: Table, console: Console, room: int | None) -> None:
    """Print the columns that are meant to be looked at, and the notes.

    Args:
        table: what to print.
        console: where to; it is made as wide as the lines of the table have to be.
        room: the width of the terminal in cells, or `None` where lines may have any length, as in a pipe.
    """
    columns = [column for column in table.columns if not column.detail]
    cells = [[column.cell(record) for record in table.shown] for column in columns]
    widths = fit([Extent.of(c.heading, of, wraps=c.wraps) for c, of in zip(columns, cells, strict=True)], room)
    shown = rich.table.Table(title=table.title, box=SIMPLE, title_justify="left", padding=0, collapse_padding=True)
    for number, (column, width) in enumerate(zip(columns, widths, strict=True)):
        if width is not None:
            shown.add_column(column.heading, justify="right" if number else "left", overflow="fold", width=width)
    kept = [of for of, width in zip(cells, widths, strict=True) if width is not None]
    for row in zip(*kept, strict=True):
        shown.add_row(*map(escape, row))
    console.width = max(room or 0, line([width for width in widths if width is not None]))
    console.print(shown)
    left_out = [" ".join(c.heading.split()) for c, width in zip(columns, widths, strict=True) if width is None]
    narrow = (f"Too narrow for {', '.join(left_out)}: use a wider terminal, a pipe or --json.",) if left_out else ()
    for note in (*table.notes, *narrow):
        console.print(f"  {note}", markup=False, highlight=False, soft_wrap=room is None)


def as_json(table: Table) -> str:
    """All records; NaN and infinity are errors, not numbers.

    Raises:
        ValueError: a record holds one.
    """
    return json.dumps(list(table.records), indent=1, allow_nan=False, ensure_ascii=False)


def as_html(table: Table, provenance: Provenance) -> str:
    """One file: no script, no server, nothing to load."""
    source = files("assay_training.evaluation").joinpath("report.html.jinja").read_text()
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return page.render(table=table, provenance=provenance)
