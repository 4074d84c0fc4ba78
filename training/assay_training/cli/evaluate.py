"""Define `assay evaluate …`.

Only light modules are imported at the top. Each command imports the rest when it runs, so that `--help` is fast.
"""

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from assay_client.options import LOCAL, ApiKeyFile, Url
from assay_training.cli.errors import plain_errors
from assay_training.cli.options import Fields, Files, GroupBy, Html, Json, Judged, LargestGap, Models, Reference

if TYPE_CHECKING:
    from assay_training.evaluation.table import Table

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Evaluate judgments and rewards.")


@app.command("winrate")
def winrate(
    files: Files,
    groups: Annotated[
        Path | None, typer.Option(help="JSON file of instructions with their groups.", exists=True)
    ] = None,
    group_by: Annotated[
        list[str] | None,
        typer.Option(help="Field to group by, such as dataset, in --groups if given, else in the rows."),
    ] = None,
    reference: Reference = None,
    ddof: Annotated[
        int, typer.Option(help="Divide the variance by n - 1 (1) or by n (0) for the SE.", min=0, max=1)
    ] = 1,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Compute win rates from rows of AlpacaEval."""
    from assay_training.evaluation.judgments.instructions import read_groups  # noqa: PLC0415
    from assay_training.evaluation.judgments.verdicts import read_verdicts  # noqa: PLC0415
    from assay_training.evaluation.judgments.winrate import assign_groups, tabulate_win_rates  # noqa: PLC0415

    with plain_errors("evaluate winrate"):
        # With --groups, --group-by names fields of that file and not of the rows.
        verdicts = read_verdicts(files, reference, () if groups else group_by or ())
        records = _require_rows(verdicts.records, files)
        if groups is not None:
            by_instruction = read_groups(groups, group_by or ())
            records = [assign_groups(verdict, by_instruction) for verdict in records]
        table = tabulate_win_rates(replace(verdicts, records=records), ddof=ddof)
        show_table(table, [*files, *([groups] if groups else [])], as_json, html)


@app.command("vote")
def vote(
    files: Files,
    keys: Annotated[Path, typer.Option(help="Key: which model wrote which completion.", exists=True, dir_okay=False)],
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Compute points from ballots under every rule for ties; give one file for each group of voters."""
    from assay_training.evaluation.judgments.ballots import read_polls  # noqa: PLC0415
    from assay_training.evaluation.judgments.vote import tabulate_votes  # noqa: PLC0415

    with plain_errors("evaluate vote"):
        table = tabulate_votes(_require_rows(read_polls(files, keys), files))
        show_table(table, [*files, keys], as_json, html)


@app.command("judge")
def judge(  # noqa: PLR0913, PLR0917 - the options of a command
    files: Files,
    url: Annotated[str, typer.Option(help="Base URL of an OpenAI-compatible API, up to and including /v1.")],
    model: Annotated[str, typer.Option(help="Name of the judge at the API.")],
    out: Annotated[
        Path, typer.Option(help="File for the verdicts; answers are kept in OUT.answers.jsonl.", dir_okay=False)
    ],
    order: Annotated[str, typer.Option(help="Show each pair in `both` orders, or in one `random` order.")] = "both",
    prices: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Prices of a million prompt tokens and of a million answer tokens."),
    ] = None,
    reference: Reference = None,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Let a language model judge pairs of outputs. A repeated command asks only the questions without an answer."""
    from assay_training.evaluation.judgments.judge import judge_all  # noqa: PLC0415
    from assay_training.evaluation.judgments.verdicts import read_output_pairs  # noqa: PLC0415

    with plain_errors("evaluate judge"):
        # Before anything is asked: an answer costs money, and its verdict must have a place.
        _check_outputs(files, out, html)
        pairs = _require_rows(read_output_pairs(files, reference), files)
        table, rows, failed = judge_all(pairs, url, model, out, order, prices)
        out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        show_table(table, files, as_json, html)
    # The verdicts are written, but a script must not take them for complete.
    if failed:
        raise typer.Exit(1)


@app.command("task")
def task(
    files: Files,
    out: Annotated[Path, typer.Option(help="File for the task, without names of models.", dir_okay=False)],
    keys: Annotated[Path, typer.Option(help="File for the key with the names.", dir_okay=False)],
    reference: Reference = None,
) -> None:
    """Write a ranking task for people from pairs of outputs; `vote` reads it with its ballots filled in."""
    from assay_training.evaluation.judgments.task import build_task  # noqa: PLC0415
    from assay_training.evaluation.judgments.verdicts import read_output_pairs  # noqa: PLC0415

    with plain_errors("evaluate task"):
        _check_outputs(files, out, keys)
        pairs = _require_rows(read_output_pairs(files, reference), files)
        built, key = build_task(pairs)
        out.write_text(json.dumps(built, indent=1, ensure_ascii=False) + "\n")
        keys.write_text(json.dumps(key, indent=1, ensure_ascii=False) + "\n")


@app.command("absolute")
def absolute(files: Files, as_json: Json = False, html: Html = None) -> None:
    """Compute errors by bucket of the label, from rows with label and prediction."""
    from assay_training.evaluation.rewards.absolute import read_predictions, tabulate_errors  # noqa: PLC0415

    with plain_errors("evaluate absolute"):
        table = tabulate_errors({str(path): read_predictions(path) for path in files})
        show_table(table, files, as_json, html)


@app.command("agreement")
def agreement(  # noqa: PLR0913, PLR0917 - the options of a command
    judged: Judged,
    url: Url = LOCAL,
    api_key_file: ApiKeyFile = None,
    model: Models = None,
    reference: Reference = None,
    group_by: GroupBy = None,
    field: Fields = None,
    largest_gap: LargestGap = None,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Compute how often served signals and blends agree with judges or people, with length as the baseline."""
    from assay_client._addresses import read_api_key  # noqa: PLC0415
    from assay_client.client import RewardClient  # noqa: PLC0415
    from assay_training.evaluation.rewards.agreement import tabulate_agreement  # noqa: PLC0415
    from assay_training.evaluation.rewards.evaluate import evaluate_rankings  # noqa: PLC0415
    from assay_training.evaluation.rewards.options import ReadOptions, parse_fields  # noqa: PLC0415

    with plain_errors("evaluate agreement"):
        client = RewardClient(url, api_key=read_api_key(api_key_file))
        options = ReadOptions(reference, group_by, largest_gap, parse_fields(field or []))
        _show_evaluation(
            partial(evaluate_rankings, tabulate_agreement, judged, options, client, model or []), judged, as_json, html
        )


@app.command("margins")
def margins(  # noqa: PLR0913, PLR0917 - the options of a command
    judged: Judged,
    url: Url = LOCAL,
    api_key_file: ApiKeyFile = None,
    model: Models = None,
    reference: Reference = None,
    group_by: GroupBy = None,
    field: Fields = None,
    largest_gap: LargestGap = None,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Compute how served margins are distributed and calibrated, and how scores depend on length."""
    from assay_client._addresses import read_api_key  # noqa: PLC0415
    from assay_client.client import RewardClient  # noqa: PLC0415
    from assay_training.evaluation.rewards.evaluate import evaluate_rankings  # noqa: PLC0415
    from assay_training.evaluation.rewards.margins import tabulate_margins  # noqa: PLC0415
    from assay_training.evaluation.rewards.options import ReadOptions, parse_fields  # noqa: PLC0415

    with plain_errors("evaluate margins"):
        client = RewardClient(url, api_key=read_api_key(api_key_file))
        options = ReadOptions(reference, group_by, largest_gap, parse_fields(field or []))
        _show_evaluation(
            partial(evaluate_rankings, tabulate_margins, judged, options, client, model or []), judged, as_json, html
        )


@app.command("best-of-n")
def best_of_n(  # noqa: PLR0913, PLR0917 - the options of a command
    judged: Judged,
    url: Url = LOCAL,
    api_key_file: ApiKeyFile = None,
    model: Models = None,
    gold: Annotated[
        str | None, typer.Option(help="Served model whose scores are the gold values, instead of the labels.")
    ] = None,
    group_by: GroupBy = None,
    field: Fields = None,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Compute the gold value of the best of N by served rewards; labels or another model give gold values."""
    from assay_client._addresses import read_api_key  # noqa: PLC0415
    from assay_client.client import RewardClient  # noqa: PLC0415
    from assay_training.evaluation.rewards.evaluate import evaluate_candidates  # noqa: PLC0415
    from assay_training.evaluation.rewards.options import ReadOptions, parse_fields  # noqa: PLC0415

    with plain_errors("evaluate best-of-n"):
        client = RewardClient(url, api_key=read_api_key(api_key_file))
        options = ReadOptions(by=group_by, fields=parse_fields(field or []))
        _show_evaluation(
            partial(evaluate_candidates, judged, options, client, model or [], gold), judged, as_json, html
        )


def _show_evaluation(evaluate: "Callable[[], Table]", judged: Sequence[str], as_json: bool, html: Path | None) -> None:
    from assay_training.evaluation.rewards.inputs import list_files  # noqa: PLC0415

    files = [path for given in judged for path in list_files(given)]
    # Before the scores are fetched, which may take hours.
    _check_outputs(files, html)
    show_table(evaluate(), files, as_json, html)


def _require_rows(rows: list[T], files: Sequence[Path]) -> list[T]:
    """Return the rows of files, or raise if there are none."""
    if not rows:
        raise ValueError(f"{', '.join(map(str, files))}: found no rows to evaluate")
    return rows


def _check_outputs(inputs: Sequence[Path], *outputs: Path | None) -> None:
    """Check that every output can be written and overwrites neither an input nor another output.

    Args:
        inputs: files that the command reads.
        outputs: files that it writes; `None` for those that were not requested.

    Raises:
        ValueError: an output is an input or another output, ends in .gz, or its folder does not exist.
    """
    # Resolved, so that two spellings of one path and links to one file are recognized.
    taken = {path.resolve() for path in inputs}
    for out in outputs:
        if out is None:
            continue
        if out.resolve() in taken:
            raise ValueError(f"{out}: the command already reads or writes this file; choose another output")
        if out.suffix == ".gz":
            raise ValueError(f"{out}: the output is plain text; choose a name without .gz")
        if not out.parent.is_dir():
            raise ValueError(f"{out}: the folder {out.parent} does not exist; create it first")
        taken.add(out.resolve())


def show_table(table: "Table", paths: Sequence[Path], as_json: bool, html: Path | None) -> None:
    """Print a table as text or JSON, and write its HTML page if one was requested.

    With `as_json`, the notes are printed to standard error, so that standard output is valid JSON.

    Args:
        table: table to show.
        paths: files that were read, whose hashes are in the page.
        as_json: whether to print JSON.
        html: file for the page, or `None`.

    Raises:
        ValueError: a record holds NaN or infinity, or `html` cannot be written.
    """
    from rich.console import Console  # noqa: PLC0415

    from assay_training.evaluation import report  # noqa: PLC0415

    # The JSON is made first in any case: it refuses NaN and infinity before anything is written.
    numbers = report.render_json(table)
    _check_outputs(paths, html)
    if html is not None:
        provenance = report.Provenance.compute(shlex.join(["assay", *sys.argv[1:]]), paths)
        html.write_text(report.render_html(table, provenance))
    if as_json:
        typer.echo(numbers)
        for note in table.notes:
            typer.echo(note, err=True)
    else:
        # The width is COLUMNS if that is set, otherwise the terminal's. A pipe has no width, and its lines are not cut.
        report.print_table(table, Console(), shutil.get_terminal_size((0, 0)).columns or None)
