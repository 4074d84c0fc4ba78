"""What the commands show: tables, a bar, and one line for each expected failure.

Only typer and the standard library are imported up here; the functions import what else they need.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from assay_client._rows import RankRow
    from assay_client.bulk import Tally
    from assay_client.results import Comparison, RankResult, RenderedItem
    from assay_client.types import ScoreFailure

EXIT_ITEMS_FAILED = 1
EXIT_FAILED = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_PIPE = 128 + 13  # SIGPIPE, which Windows does not have: the status of any command whose reader has left
COMPLETION_CHARS = 60  # of a completion, in a table
TEXT_WIDTH = 20  # that a column of text has at least


def show_comparison(result: "Comparison") -> None:
    """Print a comparison as a table."""
    table = _table("", "margin", "P(A better)", "logit A", "logit B")
    for name, signal_ in result.signals.items():
        prob = "" if signal_.prob_a is None else f"{signal_.prob_a:.3f}"
        table.add_row(name, f"{signal_.margin:+.4f}", prob, f"{signal_.a.logit:.4f}", f"{signal_.b.logit:.4f}")
    for name, margin in result.blends.items():
        table.add_row(f"{name} (blend)", f"{margin:+.4f}", "", "", "")
    print_table(table)


def show_rank(index: int, row: "RankRow", result: "RankResult") -> None:
    """Print a ranking as a table, best first, and the completions that failed."""
    from rich.text import Text  # noqa: PLC0415

    from assay_client.types import completion_text  # noqa: PLC0415

    signals = list(result.results[0].signals) if result.results else []
    table = _table("rank", "score", "margin", *signals)
    table.title = Text(f"row {index}" if row.id is None else f"row {index}: {start(row.id)}")
    table.title_justify = "left"
    table.add_column("completion", min_width=TEXT_WIDTH)
    for place, one in enumerate(result.results, start=1):
        margin = "" if one.margin is None else f"{one.margin:.4f}"
        logits = (f"{one.signals[name].logit:.4f}" if name in one.signals else "" for name in signals)
        given = row.completions[one.index]
        text = completion_text(given["completion"] if isinstance(given, dict) else given)
        table.add_row(str(place), f"{one.score:.4f}", margin, *logits, Text(start(text)))
    print_table(table)
    for failed in result.errors:
        typer.echo(f"completion {failed.index}: {failed.error.code}: {start(failed.error.message, None)}")


def show_rendered(item: "RenderedItem | ScoreFailure") -> None:
    """Print what every signal reads of an item; control characters are escaped."""
    from assay_client.types import ScoreFailure  # noqa: PLC0415

    typer.echo(f"row {item.index}" if item.id is None else f"row {item.index}: {start(item.id)}")
    if isinstance(item, ScoreFailure):
        typer.echo(f"  {item.error.code}: {start(item.error.message, None)}")
        return
    for name, one in item.signals.items():
        cut = f", {one.truncated_tokens} cut from the prompt" if one.truncated_tokens else ""
        typer.echo(
            f"  {name}: {len(one.ids)} tokens{cut}; completion from token {one.boundary}; "
            f"score ({one.score_policy}) from tokens {one.score_start} to {one.score_end - 1}"
        )
        typer.echo(f"    {one.text!r}")


def _table(*numbers: str) -> "Table":
    """A table whose columns hold names and numbers, which no line break divides."""
    from rich.table import Table  # noqa: PLC0415

    table = Table()
    for name in numbers:
        table.add_column(name, no_wrap=True, min_width=len(name))
    return table


def print_table(table: "Table") -> None:
    """Print a table as wide as the terminal, or as wide as its numbers need; in a pipe as wide as all of it needs."""
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    unlimited = console.options.update(max_width=sys.maxsize)
    needs = console.measure(table, options=unlimited)
    console.width = max(console.width, needs.minimum) if console.is_terminal else needs.maximum
    console.print(table, crop=False)


def start(text: str, chars: int | None = COMPLETION_CHARS) -> str:
    """The beginning of a text on one line; control characters never reach the terminal."""
    part = text if chars is None else text[: 2 * chars]
    line = " ".join("".join(char if char.isprintable() else " " for char in part).split())
    return line if chars is None or len(line) <= chars else line[: chars - 1] + "…"


@contextmanager
def progress() -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr with the time left, if someone is there to see it; yields what moves it to a row."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn  # noqa: PLC0415

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task("rows", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def plain_errors(target: str | None = None) -> Iterator[None]:
    """An expected failure becomes one line on stderr and an exit status.

    Args:
        target: the output, of which an unfinished part may be left; the line says how to go on.
    """
    from assay_client import _output  # noqa: PLC0415
    from assay_client.errors import AssayError, FingerprintChanged, InvalidInput  # noqa: PLC0415

    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has had enough. What is left in the buffer has to go somewhere when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_PIPE) from None
    except KeyboardInterrupt:
        kept = _output.kept(target) if target else None
        failed(f"interrupted; {kept}" if kept else "interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except FingerprintChanged as error:
        part = _output.part_of(Path(target).resolve()) if target else None
        advice = f"; delete {part} to score every row by the new model" if part and part.exists() else ""
        raise failed(f"{error}{advice}") from error
    except (AssayError, OSError) as error:
        # What is malformed stays malformed, so that the same command would not go on.
        kept = _output.kept(target) if target and not isinstance(error, InvalidInput) else None
        raise failed(f"{error}; {kept}" if kept else str(error)) from error


def failed(message: str) -> typer.Exit:
    """Print why a command failed; returns what ends it."""
    typer.echo("assay: " + " ".join(message.split()), err=True)
    return typer.Exit(EXIT_FAILED)


def finish(tally: "Tally", verb: str = "scored") -> None:
    """Print what a file came to; raises Exit if items failed."""
    fingerprint = f", fingerprint {tally.fingerprint or 'none'}" * (verb == "scored")
    typer.echo(f"{tally.scored} {verb}, {tally.failed} failed{fingerprint}", err=True)
    if tally.extra:
        typer.echo(f"not part of an item, copied to `extra`: {', '.join(tally.extra)}", err=True)
    if tally.failed:
        typer.echo(f"first: {' '.join(str(tally.first_error).split())}", err=True)
        raise typer.Exit(EXIT_ITEMS_FAILED)
