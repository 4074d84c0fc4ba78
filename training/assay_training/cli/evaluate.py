"""`assay evaluate …`. Imports only typer and the standard library at the top; the rest later."""

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from assay_client.cli import LOCAL, Url
from assay_training.cli.errors import plain_errors

if TYPE_CHECKING:
    from assay_training.evaluation.table import Table

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Evaluate judgments and rewards.")

Files = Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)]
Json = Annotated[bool, typer.Option("--json", help="Print all numbers as JSON instead of the table.")]
Html = Annotated[Path | None, typer.Option(help="Also write a page with plots, command and data hashes.")]
Judged = Annotated[list[str], typer.Argument(metavar="FORMAT:PATH...", show_default=False, help="What was judged.")]
Models = Annotated[list[str] | None, typer.Option(help="Signals and blends; default: all that are served.")]
GroupBy = Annotated[str | None, typer.Option(help="A field of the rows (subset) by which lines are split.")]
Fields = Annotated[
    list[str] | None, typer.Option(metavar="NAME=FIELD", help="Read a row's FIELD as NAME (prompt=question).")
]
LargestGap = Annotated[float | None, typer.Option(help="Of preferences: the margin that counts as a gap of 1.")]
Reference = Annotated[str | None, typer.Option(help="Model of output_1 where rows name only `generator`.")]


@app.command("winrate")
def winrate(
    files: Files,
    groups: Annotated[Path | None, typer.Option(help="JSON: instructions and their groups.", exists=True)] = None,
    group_by: Annotated[
        list[str] | None, typer.Option(help="A field that is a group (dataset): of --groups, else of the rows.")
    ] = None,
    reference: Reference = None,
    ddof: Annotated[int, typer.Option(help="SE from n - 1 (1) or n (0).", min=0, max=1)] = 1,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Win rates from AlpacaEval's rows."""
    from assay_training.evaluation.judgments.instructions import read_groups  # noqa: PLC0415
    from assay_training.evaluation.judgments.verdicts import read_verdicts  # noqa: PLC0415
    from assay_training.evaluation.judgments.winrate import in_groups  # noqa: PLC0415
    from assay_training.evaluation.judgments.winrate import winrate as evaluate  # noqa: PLC0415

    with plain_errors("evaluate winrate"):
        verdicts = read_verdicts(files, reference, () if groups else group_by or ())
        found = _some(verdicts.records, files)
        if groups is not None:
            of = read_groups(groups, group_by or ())
            found = [in_groups(verdict, of) for verdict in found]
        table = evaluate(replace(verdicts, records=found), ddof=ddof)
        finish(table, [*files, *([groups] if groups else [])], as_json, html)


@app.command("vote")
def vote(
    files: Files,
    keys: Annotated[Path, typer.Option(help="Which model wrote which response.", exists=True, dir_okay=False)],
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Ballots to points, under every rule for ties; a file per group of voters."""
    from assay_training.evaluation.judgments.ballots import read_polls  # noqa: PLC0415
    from assay_training.evaluation.judgments.vote import vote as evaluate  # noqa: PLC0415

    with plain_errors("evaluate vote"):
        table = evaluate(_some(read_polls(files, keys), files))
        finish(table, [*files, keys], as_json, html)


@app.command("judge")
def judge(  # noqa: PLR0913, PLR0917 - the options of a command
    files: Files,
    url: Annotated[str, typer.Option(help="Of an OpenAI-compatible API, up to /v1.")],
    model: Annotated[str, typer.Option(help="The judge, as the API knows it.")],
    out: Annotated[Path, typer.Option(help="Where the verdicts go; answers go to OUT.answers.jsonl.", dir_okay=False)],
    order: Annotated[str, typer.Option(help="Show each pair in `both` orders, or in a `random` one.")] = "both",
    prices: Annotated[
        tuple[float, float] | None, typer.Option(help="Of a million tokens of prompt and of answer.")
    ] = None,
    reference: Reference = None,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Let a language model judge pairs of outputs. Interrupted, it goes on; what was answered is never asked again."""
    from assay_training.evaluation.judgments.judge import judge_all  # noqa: PLC0415
    from assay_training.evaluation.judgments.verdicts import read_contests  # noqa: PLC0415

    with plain_errors("evaluate judge"):
        _check_outputs(files, out, html)
        contests = _some(read_contests(files, reference), files)
        table, rows, failed = judge_all(contests, url, model, out, order, prices)
        out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        finish(table, files, as_json, html)
    if failed:
        raise typer.Exit(1)


@app.command("task")
def task(
    files: Files,
    out: Annotated[Path, typer.Option(help="Where the task goes, without names of models.", dir_okay=False)],
    keys: Annotated[Path, typer.Option(help="Where the names go.", dir_okay=False)],
    reference: Reference = None,
) -> None:
    """Make a ranking task for people out of outputs; its ballots are for `vote`."""
    from assay_training.evaluation.judgments.task import export  # noqa: PLC0415
    from assay_training.evaluation.judgments.verdicts import read_contests  # noqa: PLC0415

    with plain_errors("evaluate task"):
        _check_outputs(files, out, keys)
        contests = _some(read_contests(files, reference), files)
        made, key = export(contests)
        out.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
        keys.write_text(json.dumps(key, indent=1, ensure_ascii=False) + "\n")


@app.command("absolute")
def absolute(files: Files, as_json: Json = False, html: Html = None) -> None:
    """Errors by bucket of the label, from rows of label and prediction."""
    from assay_training.evaluation.rewards.absolute import absolute as evaluate  # noqa: PLC0415
    from assay_training.evaluation.rewards.absolute import read_qualities  # noqa: PLC0415

    with plain_errors("evaluate absolute"):
        table = evaluate({str(path): read_qualities(path) for path in files})
        finish(table, files, as_json, html)


@app.command("agreement")
def agreement(  # noqa: PLR0913, PLR0917 - the options of a command
    judged: Judged,
    url: Url = LOCAL,
    model: Models = None,
    reference: Reference = None,
    group_by: GroupBy = None,
    field: Fields = None,
    largest_gap: LargestGap = None,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """How often served signals and blends agree with judges or people, beside the length baseline."""
    from assay_training.evaluation.rewards.agreement import agreement as evaluate  # noqa: PLC0415
    from assay_training.evaluation.rewards.asked import of_rankings  # noqa: PLC0415
    from assay_training.evaluation.rewards.reading import Reading, fields_of  # noqa: PLC0415

    with plain_errors("evaluate agreement"):
        _check_outputs(_files(judged), html)
        reading = Reading(reference, group_by, largest_gap, fields_of(field or []))
        finish(of_rankings(evaluate, judged, reading, url, model or []), _files(judged), as_json, html)


@app.command("margins")
def margins(  # noqa: PLR0913, PLR0917 - the options of a command
    judged: Judged,
    url: Url = LOCAL,
    model: Models = None,
    reference: Reference = None,
    group_by: GroupBy = None,
    field: Fields = None,
    largest_gap: LargestGap = None,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """How served margins are distributed and calibrated, and what length has to do with scores."""
    from assay_training.evaluation.rewards.asked import of_rankings  # noqa: PLC0415
    from assay_training.evaluation.rewards.margins import margins as evaluate  # noqa: PLC0415
    from assay_training.evaluation.rewards.reading import Reading, fields_of  # noqa: PLC0415

    with plain_errors("evaluate margins"):
        _check_outputs(_files(judged), html)
        reading = Reading(reference, group_by, largest_gap, fields_of(field or []))
        finish(of_rankings(evaluate, judged, reading, url, model or []), _files(judged), as_json, html)


@app.command("best-of-n")
def best_of_n(  # noqa: PLR0913, PLR0917 - the options of a command
    judged: Judged,
    url: Url = LOCAL,
    model: Models = None,
    gold: Annotated[str | None, typer.Option(help="A served model to judge by, instead of the labels.")] = None,
    group_by: GroupBy = None,
    field: Fields = None,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """What the best of N by served rewards is worth by labels, or by another model."""
    from assay_training.evaluation.rewards.asked import of_candidates  # noqa: PLC0415
    from assay_training.evaluation.rewards.reading import Reading, fields_of  # noqa: PLC0415

    with plain_errors("evaluate best-of-n"):
        _check_outputs(_files(judged), html)
        reading = Reading(by=group_by, fields=fields_of(field or []))
        finish(of_candidates(judged, reading, url, model or [], gold), _files(judged), as_json, html)


def _some(rows: list[T], files: Sequence[Path]) -> list[T]:
    if not rows:
        raise ValueError(f"{', '.join(map(str, files))}: no rows")
    return rows


def _files(judged: Sequence[str]) -> list[Path]:
    from assay_training.evaluation.rewards.judged import files_of  # noqa: PLC0415

    return [path for given in judged for path in files_of(given)]


def _check_outputs(inputs: Sequence[Path], *outputs: Path | None) -> None:
    """That nothing is written over, or where it could not be read again.

    Raises:
        ValueError: an output is an input or another output, ends in .gz, or has no folder.
    """
    taken = {path.resolve() for path in inputs}
    for out in outputs:
        if out is None:
            continue
        if out.resolve() in taken:
            raise ValueError(f"{out}: is read, or written already; name another file")
        if out.suffix == ".gz":
            raise ValueError(f"{out}: is written as plain text; name it without .gz")
        if not out.parent.is_dir():
            raise ValueError(f"{out}: no such folder")
        taken.add(out.resolve())


def finish(table: "Table", paths: Sequence[Path], as_json: bool, html: Path | None) -> None:
    """Shows a table in the forms that were asked for."""
    from rich.console import Console  # noqa: PLC0415

    from assay_training.evaluation import report  # noqa: PLC0415

    numbers = report.as_json(table)  # first, as it refuses what is no number
    _check_outputs(paths, html)
    if html is not None:
        provenance = report.Provenance.of(shlex.join(["assay", *sys.argv[1:]]), paths)
        html.write_text(report.as_html(table, provenance))
    if as_json:
        typer.echo(numbers)
        for note in table.notes:
            typer.echo(note, err=True)
    else:
        # COLUMNS if it is set, else the terminal's width; a pipe has none
        report.show(table, Console(), shutil.get_terminal_size((0, 0)).columns or None)
