"""Print a table on the terminal, or write it as JSON or as an HTML page without external files."""

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

from assay_training.evaluation.layout import ColumnWidths, compute_line_width, fit_widths
from assay_training.evaluation.table import Table


@dataclass(frozen=True, slots=True)
class Provenance:
    """The command and the files that reproduce a table.

    Attributes:
        command: command line as it was typed.
        sha256: hash of every file that was read, by its path.
    """

    command: str
    sha256: Mapping[str, str]

    @classmethod
    def compute(cls, command: str, paths: Iterable[Path]) -> "Provenance":
        """Hash the files.

        Raises:
            OSError: a file cannot be read.
        """
        return cls(command, {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths})


def print_table(table: Table, console: Console, room: int | None) -> None:
    """Print the columns that are not details, and the notes.

    Args:
        table: table to print.
        console: console to print to; its width is set to that of the table's lines.
        room: width of the terminal in cells, or `None` if lines may have any length, as in a pipe.
    """
    columns = [column for column in table.columns if not column.detail]
    cells = [[column.cell(record) for record in table.shown] for column in columns]
    measured = [ColumnWidths.measure(c.heading, texts, wraps=c.wraps) for c, texts in zip(columns, cells, strict=True)]
    widths = fit_widths(measured, room)
    shown = rich.table.Table(title=table.title, box=SIMPLE, title_justify="left", padding=0, collapse_padding=True)
    for number, (column, width) in enumerate(zip(columns, widths, strict=True)):
        if width is not None:
            shown.add_column(column.heading, justify="right" if number else "left", overflow="fold", width=width)
    kept = [texts for texts, width in zip(cells, widths, strict=True) if width is not None]
    for row in zip(*kept, strict=True):
        shown.add_row(*map(escape, row))
    # rich would otherwise shrink columns by its own rules, and break numbers.
    console.width = max(room or 0, compute_line_width([width for width in widths if width is not None]))
    console.print(shown)
    hidden = [" ".join(c.heading.split()) for c, width in zip(columns, widths, strict=True) if width is None]
    narrow = (f"Too narrow for {', '.join(hidden)}: use a wider terminal, a pipe or --json.",) if hidden else ()
    for note in (*table.notes, *narrow):
        console.print(f"  {note}", markup=False, highlight=False, soft_wrap=room is None)


def render_json(table: Table) -> str:
    """Return all records as JSON.

    Raises:
        ValueError: a record holds NaN or infinity, which JSON has no form for.
    """
    return json.dumps(list(table.records), indent=1, allow_nan=False, ensure_ascii=False)


def render_html(table: Table, provenance: Provenance) -> str:
    """Return the table as one HTML page, without scripts and without links to other files."""
    source = files("assay_training.evaluation").joinpath("report.html.jinja").read_text()
    # Names and notes come from data: without escaping they could inject markup.
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return page.render(table=table, provenance=provenance)
