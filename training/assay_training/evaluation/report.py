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


def show(table: Table, console: Console) -> None:
    """Prints the columns that are meant to be looked at, and the notes."""
    shown = rich.table.Table(title=table.title, box=SIMPLE, title_justify="left", padding=0, collapse_padding=True)
    columns = [column for column in table.columns if not column.detail]
    for number, column in enumerate(columns):
        shown.add_column(column.heading, justify="left" if number == 0 else "right", overflow="fold")
    for record in table.shown:
        shown.add_row(*(escape(column.cell(record)) for column in columns))
    console.print(shown)
    for note in table.notes:
        console.print(f"  {note}", markup=False, highlight=False)


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
