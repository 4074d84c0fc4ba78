"""Define the options that several commands of `assay evaluate` share, with the help that they print."""

from pathlib import Path
from typing import Annotated

import typer

Files = Annotated[list[Path], typer.Argument(help="JSON or JSON lines, may be gzipped.", exists=True, dir_okay=False)]
Json = Annotated[bool, typer.Option("--json", help="Print all numbers as JSON instead of the table.")]
Html = Annotated[
    Path | None, typer.Option(help="Also write an HTML page with plots, the command and hashes of the data.")
]
Judged = Annotated[
    list[str], typer.Argument(metavar="FORMAT:PATH...", show_default=False, help="Judged completions to score.")
]
Models = Annotated[list[str] | None, typer.Option(help="Signals and blends to evaluate; default: all that are served.")]
GroupBy = Annotated[str | None, typer.Option(help="Field of the rows, such as subset; each value gets its own lines.")]
Fields = Annotated[
    list[str] | None, typer.Option(metavar="NAME=FIELD", help="Read FIELD of each row as NAME, as in prompt=question.")
]
LargestGap = Annotated[
    float | None, typer.Option(help="For the format preferences: the margin that counts as a gap of 1.")
]
Reference = Annotated[str | None, typer.Option(help="Name of the model of output_1 in rows that do not name it.")]
