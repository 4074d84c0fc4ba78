"""Print the output of the commands: tables, a progress bar, and one line for each expected failure.

Only typer and the standard library are imported at the top; the functions import the rest, so that help is quick.
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

    from assay_client._difference import Difference, Side
    from assay_client._file_run import Tally
    from assay_client._isolation import Ranking
    from assay_client._rows import RankRow
    from assay_client.results import Comparison, RenderedItem
    from assay_client.types import ScoreFailure

EXIT_ITEMS_FAILED = 1
EXIT_FAILED = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_PIPE = 128 + 13  # SIGPIPE, which Windows does not have: the usual status of a command whose reader has left
COMPLETION_CHARS = 60  # the longest part of a completion that a table shows
TEXT_WIDTH = 20  # the least width of a column of text


def show_comparison(result: "Comparison") -> None:
    """Print a comparison as a table."""
    table = _build_table("", "margin", "P(A better)", "logit A", "logit B")
    for name, signal_ in result.signals.items():
        prob = "" if signal_.prob_a is None else f"{signal_.prob_a:.3f}"
        table.add_row(name, f"{signal_.margin:+.4f}", prob, f"{signal_.a.logit:.4f}", f"{signal_.b.logit:.4f}")
    for name, margin in result.blends.items():
        penalty = result.length_penalties.get(name)
        # The logits of the table do not show it, so that their sum would not explain the margin.
        length = "" if penalty is None else f", -{penalty.per_token:g} per token of {penalty.signal}"
        table.add_row(f"{name} (blend{length})", f"{margin:+.4f}", "", "", "")
    print_table(table)


def show_rank(index: int, row: "RankRow", result: "Ranking") -> None:
    """Print a ranking as a table, best first, and the completions that failed."""
    from rich.text import Text  # noqa: PLC0415

    from assay_client.messages import read_completion_text  # noqa: PLC0415

    signals = list(result.results[0].signals) if result.results else []
    table = _build_table("rank", "score", "margin", *signals)
    table.title = Text(f"row {index}" if row.id is None else f"row {index}: {shorten(str(row.id))}")
    table.title_justify = "left"
    table.add_column("completion", min_width=TEXT_WIDTH)
    for place, ranked in enumerate(result.results, start=1):
        margin = "" if ranked.margin is None else f"{ranked.margin:.4f}"
        logits = (f"{ranked.signals[name].logit:.4f}" if name in ranked.signals else "" for name in signals)
        given = row.completions[ranked.index]
        text = read_completion_text(given["completion"] if isinstance(given, dict) else given)
        table.add_row(str(place), f"{ranked.score:.4f}", margin, *logits, Text(shorten(text)))
    print_table(table)
    for failure in result.errors:
        typer.echo(f"completion {failure.index}: {failure.error.code}: {shorten(failure.error.message, None)}")


def show_rendered(item: "RenderedItem | ScoreFailure") -> None:
    """Print how every signal reads an item; control characters are escaped."""
    from assay_client.types import ScoreFailure  # noqa: PLC0415

    typer.echo(f"row {item.index}" if item.id is None else f"row {item.index}: {shorten(item.id)}")
    if isinstance(item, ScoreFailure):
        typer.echo(f"  {item.error.code}: {shorten(item.error.message, None)}")
        return
    for name, rendered in item.signals.items():
        cut = f", {rendered.truncated_tokens} cut from the prompt" if rendered.truncated_tokens else ""
        typer.echo(
            f"  {name}: {len(rendered.ids)} tokens{cut}; completion from token {rendered.boundary}; "
            f"score ({rendered.score_policy}) from tokens {rendered.score_start} to {rendered.score_end - 1}"
        )
        typer.echo(f"    {rendered.text!r}")


def show_difference(found: "Difference") -> None:
    """Print what differs between two services: who they are, one table of counts, and the worst examples."""
    for side in found.sides:
        typer.echo(f"{side.name}: {side.url}, {_describe_side(side)}")
    print_table(_tabulate_difference(found))
    examples = (("score", found.worst), ("pick", found.groups.worst), ("pair", found.pairs.worst))
    for what, rows in (*((name, worst.list_rows()) for name, worst in examples), ("failure", found.failures)):
        for row in rows:
            parts = (
                f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
            typer.echo(f"{what}: {shorten(', '.join(parts), None)}")


def _tabulate_difference(found: "Difference") -> "Table":
    """Return one table of all counts; a kind of row that the file does not have is not in it."""
    scores, groups, pairs = found.scores, found.groups, found.pairs
    table = _build_table("what", "value")
    table.add_row("rows", str(found.rows))
    table.add_row("rows without a score", str(found.failed))
    table.add_row("completions", str(scores.count))
    table.add_row("of these bit-equal", _format_share(scores.equal, scores.count))
    for name, value in (("mean", scores.mean if scores.count else None), ("sd", scores.sd)):
        table.add_row(
            f"new - old, {name}", "" if value is None else f"{value:+.3g}" if name == "mean" else f"{value:.3g}"
        )
    table.add_row("new - old, largest", f"{scores.largest:.3g}" if scores.count else "")
    sampled = " (sample)" * scores.is_sampled
    table.add_row(f"Spearman{sampled}", "" if scores.spearman is None else f"{scores.spearman:.6f}")
    # Zeros would look like a result where the file has no such rows.
    if groups.count:
        table.add_row("changed picks", _format_share(groups.changed_picks, groups.count))
        table.add_row("changed orders", _format_share(groups.changed_orders, groups.count))
        table.add_row("Kendall, mean", f"{groups.taus / groups.tau_rows:.6f}" if groups.tau_rows else "")
    if pairs.count:
        table.add_row("old prefers chosen", _format_share(pairs.old_right, pairs.count))
        table.add_row("new prefers chosen", _format_share(pairs.new_right, pairs.count))
        table.add_row("flipped pairs", _format_share(pairs.flips, pairs.count))
    return table


def _describe_side(side: "Side") -> str:
    if side.provenance is None:
        return "no rows"
    signals = ", ".join(f"{name} {one.model}@{one.revision[:16]}" for name, one in side.provenance.signals.items())
    return f"{side.model or 'weights'}, fingerprint {side.provenance.fingerprint[:16]}, {signals}"


def _format_share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({part / whole:.2%})" if whole else "")


def _build_table(*numbers: str) -> "Table":
    """Return a table whose columns hold names and numbers, which are never broken over lines."""
    from rich.table import Table  # noqa: PLC0415

    table = Table()
    for name in numbers:
        table.add_column(name, no_wrap=True, min_width=len(name))
    return table


def print_table(table: "Table") -> None:
    """Print a table as wide as the terminal, or as its numbers need if that is more; in a pipe, as wide as it needs."""
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    # Programs that read a pipe do not expect cells that are broken over lines.
    unlimited = console.options.update(max_width=sys.maxsize)
    needs = console.measure(table, options=unlimited)
    console.width = max(console.width, needs.minimum) if console.is_terminal else needs.maximum
    console.print(table, crop=False)


def shorten(text: str, chars: int | None = COMPLETION_CHARS) -> str:
    """Return the beginning of a text on one line; control characters never reach the terminal.

    Args:
        text: the text.
        chars: the most characters that are returned; None for the whole text.
    """
    # A completion may be very long: twice the characters leave enough after spaces are merged.
    part = text if chars is None else text[: 2 * chars]
    line = " ".join("".join(char if char.isprintable() else " " for char in part).split())
    return line if chars is None or len(line) <= chars else line[: chars - 1] + "…"


@contextmanager
def show_progress() -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar with the time left if stderr is a terminal; yield the function that moves it to a row."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn  # noqa: PLC0415

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not sys.stderr.isatty()
    # On stderr, because stdout may hold the rows.
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task("rows", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def report_errors(target: str | None = None) -> Iterator[None]:
    """Turn an expected failure into one line on stderr and an exit status.

    Args:
        target: the output; if an unfinished part of it is left, the line says how to continue.

    Raises:
        typer.Exit: the command failed or was interrupted, or the reader of its output has left.
    """
    from assay_client import _output  # noqa: PLC0415
    from assay_client.errors import AssayError, FingerprintChanged, InvalidInput  # noqa: PLC0415

    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has left. The rest of the buffer is written at exit, and must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_PIPE) from None
    except KeyboardInterrupt:
        kept = _output.describe_part(target) if target else None
        report_failure(f"interrupted; {kept}" if kept else "interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except FingerprintChanged as error:
        part = _output.find_part(Path(target).resolve()) if target else None
        advice = f"; delete {part} to score every row by the new model" if part and part.exists() else ""
        raise report_failure(f"{_describe(error)}{advice}") from error
    except (AssayError, OSError) as error:
        # A malformed input stays malformed, so that the same command would fail again.
        kept = _output.describe_part(target) if target and not isinstance(error, InvalidInput) else None
        raise report_failure(f"{_describe(error)}; {kept}" if kept else _describe(error)) from error


def _describe(error: Exception) -> str:
    """Return the text of an error and of its notes, which say which of two services it is about."""
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


def report_failure(message: str) -> typer.Exit:
    """Print why a command failed, and return the exception that ends it."""
    typer.echo("assay: " + " ".join(message.split()), err=True)
    return typer.Exit(EXIT_FAILED)


def finish(tally: "Tally", verb: str = "scored") -> None:
    """Print the counts of a file.

    Raises:
        Exit: items failed, so the command ends with `EXIT_ITEMS_FAILED`.
    """
    fingerprint = f", fingerprint {tally.fingerprint or 'none'}" * (verb == "scored")
    typer.echo(f"{tally.scored} {verb}, {tally.failed} failed{fingerprint}", err=True)
    if tally.extra:
        typer.echo(f"not part of an item, copied to `extra`: {', '.join(tally.extra)}", err=True)
    if tally.failed:
        typer.echo(f"first: {' '.join(str(tally.first_error).split())}", err=True)
        raise typer.Exit(EXIT_ITEMS_FAILED)
