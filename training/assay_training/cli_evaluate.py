"""`assay evaluate …`. Imports only typer and the standard library at the top; the rest later."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from assay_training.evaluation.table import Table

app = typer.Typer(no_args_is_help=True, help="Evaluate judgments and rewards.")

Files = Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)]
Json = Annotated[bool, typer.Option("--json", help="Print all numbers as JSON instead of the table.")]
Html = Annotated[Path | None, typer.Option(help="Also write a page with plots, command and data hashes.")]


@app.command("winrate")
def winrate(
    files: Files,
    groups: Annotated[Path | None, typer.Option(help="JSON list: instruction, and its groups.", exists=True)] = None,
    reference: Annotated[str | None, typer.Option(help="Model of output_1 where rows name only `generator`.")] = None,
    ddof: Annotated[int, typer.Option(help="SE from n - 1 (1) or n (0).", min=0, max=1)] = 1,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Win rates from AlpacaEval's rows."""
    from assay_training.evaluation.judgments.instructions import read_groups  # noqa: PLC0415
    from assay_training.evaluation.judgments.verdicts import read_verdicts  # noqa: PLC0415
    from assay_training.evaluation.judgments.winrate import winrate as evaluate  # noqa: PLC0415

    try:
        verdicts = [verdict for path in files for verdict in read_verdicts(path, reference)]
        table = evaluate(verdicts, {} if groups is None else read_groups(groups), ddof=ddof)
    except ValueError as error:
        _refuse("winrate", error)
    _finish(table, [*files, *([groups] if groups else [])], as_json, html)


@app.command("vote")
def vote(
    files: Files,
    keys: Annotated[
        Path | None, typer.Option(help="Models behind responses, in the thesis' form.", exists=True)
    ] = None,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Ballots to points, under every rule for ties; a file per group of voters."""
    from assay_training.evaluation.judgments.ballots import read_polls  # noqa: PLC0415
    from assay_training.evaluation.judgments.vote import vote as evaluate  # noqa: PLC0415

    try:
        table = evaluate(read_polls(files, keys))
    except ValueError as error:
        _refuse("vote", error)
    _finish(table, [*files, *([keys] if keys else [])], as_json, html)


@app.command("absolute")
def absolute(files: Files, as_json: Json = False, html: Html = None) -> None:
    """Errors by bucket of the label, from rows of label and prediction."""
    from assay_training.evaluation.rewards.absolute import absolute as evaluate  # noqa: PLC0415
    from assay_training.evaluation.rewards.absolute import read_qualities  # noqa: PLC0415

    try:
        table = evaluate({str(path): read_qualities(path) for path in files})
    except ValueError as error:
        _refuse("absolute", error)
    _finish(table, files, as_json, html)


def _refuse(command: str, error: ValueError) -> NoReturn:
    typer.echo(f"assay evaluate {command}: {error}", err=True)
    raise typer.Exit(2)


def _finish(table: "Table", paths: Sequence[Path], as_json: bool, html: Path | None) -> None:
    from rich.console import Console  # noqa: PLC0415

    from assay_training.evaluation import report  # noqa: PLC0415

    if html is not None:
        provenance = report.Provenance.of(shlex.join(["assay", *sys.argv[1:]]), paths)
        html.write_text(report.as_html(table, provenance))
    if as_json:
        typer.echo(report.as_json(table))
    else:
        report.show(table, Console())
