"""`assay`: `score`, `rank`, `compare`, and the commands that the extras add.

Only typer and the standard library are imported up here, so that `assay serve --help` is quick;
the functions below import what else they need where they begin.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Annotated

import typer
import typer.main

if TYPE_CHECKING:
    from assay_client.bulk import RankRow, Tally
    from assay_client.types import RankResult

GROUP = "assay.commands"
EXIT_ITEMS_FAILED = 1
EXIT_FAILED = 2
COMPLETION_CHARS = 60  # of a completion, in a table

File = Annotated[str, typer.Argument(metavar="FILE.jsonl", help="Rows to read; - is stdin.", show_default=False)]
Model = Annotated[str | None, typer.Option(help="Signal or blend to score by.")]
Weights = Annotated[str | None, typer.Option(metavar="NAME=W,...", help="Weights of signals, instead of a model.")]
Url = Annotated[str, typer.Option(help="Where the service is.")]
LOCAL = "http://127.0.0.1:8000"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def assay() -> None:
    """Scores completions with reward models."""


@app.command()
def score(
    file: File,
    output: Annotated[str, typer.Option("-o", "--output", help="Where to write; - is stdout.")] = "-",
    model: Model = None,
    weights: Weights = None,
    truncation: Annotated[str | None, typer.Option(help="For too long prompts: error or prompt_left.")] = None,
    url: Url = LOCAL,
) -> None:
    """Score each item of a JSONL file; one row out per row in.

    Exits with 0 if all were scored, 1 if some items failed (their rows hold the error), 2 for no output.
    """
    from typing import cast  # noqa: PLC0415

    from assay_client import bulk, client, types  # noqa: PLC0415

    with _plain_errors(), client.RewardClient(url) as service, _progress(bulk.count_rows(file)) as advance:
        tally = bulk.score_file(
            service,
            file,
            output,
            model=model,
            weights=_weights(weights),
            truncation=cast("types.Truncation | None", truncation),
            on_rows=advance,
        )
    _finish(tally)


@app.command()
def rank(
    file: File,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="JSONL instead of tables; - is stdout.", show_default=False),
    ] = None,
    model: Model = None,
    weights: Weights = None,
    top_n: Annotated[int | None, typer.Option(min=1, help="Show only the best N.")] = None,
    url: Url = LOCAL,
) -> None:
    """Rank the completions of each row of a JSONL file, best first.

    Exits with 0 if all were scored, 1 if some completions failed, 2 if the ranking as a whole did.
    """
    from assay_client import bulk, client  # noqa: PLC0415

    with _plain_errors(), client.RewardClient(url) as service, _progress(bulk.count_rows(file)) as advance:

        def on_row(index: int, row: "RankRow", result: "RankResult") -> None:
            if output is None:
                _show_rank(index, row, result)
            advance(1)

        tally = bulk.rank_file(
            service, file, output, model=model, weights=_weights(weights), top_n=top_n, on_row=on_row
        )
    _finish(tally)


@app.command()
def compare(
    prompt: Annotated[str, typer.Option(help="What was asked.")],
    a: Annotated[str, typer.Option(help="One completion.")],
    b: Annotated[str, typer.Option(help="The other.")],
    url: Url = LOCAL,
) -> None:
    """Compare two completions under every signal and blend; a positive margin is for A."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from assay_client import client  # noqa: PLC0415

    with _plain_errors(), client.RewardClient(url) as service:
        result = service.compare(prompt, a, b)
    table = Table("", "margin", "P(A better)", "logit A", "logit B")
    for name, signal in result.signals.items():
        prob = "" if signal.prob_a is None else f"{signal.prob_a:.3f}"
        table.add_row(name, f"{signal.margin:+.4f}", prob, f"{signal.a.logit:.4f}", f"{signal.b.logit:.4f}")
    for name, margin in result.blends.items():
        table.add_row(f"{name} (blend)", f"{margin:+.4f}", "", "", "")
    Console().print(table)


def _show_rank(index: int, row: "RankRow", result: "RankResult") -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    signals = list(result.results[0].signals) if result.results else []
    title = Text(f"row {index}" if row.id is None else f"row {index}: {_start(row.id)}")
    table = Table("rank", "score", "margin", *signals, "completion", title=title, title_justify="left")
    for place, one in enumerate(result.results, start=1):
        margin = "" if one.margin is None else f"{one.margin:.4f}"
        logits = (f"{one.signals[name].logit:.4f}" if name in one.signals else "" for name in signals)
        given = row.completions[one.index]
        text = given if isinstance(given, str) else given["completion"]
        table.add_row(str(place), f"{one.score:.4f}", margin, *logits, Text(_start(text)))
    console = Console()
    console.print(table)
    for failed in result.errors:
        console.print(Text(f"completion {failed.index}: {failed.error.code}: {failed.error.message}"))


def _start(text: str) -> str:
    """The beginning of a text on one line; control characters never reach the terminal."""
    line = "".join(char if char.isprintable() else " " for char in text[: 2 * COMPLETION_CHARS])
    line = " ".join(line.split())
    return line if len(line) <= COMPLETION_CHARS else line[: COMPLETION_CHARS - 1] + "…"


def _weights(text: str | None) -> Mapping[str, float] | None:
    """Weights from "name=w,..."; raises BadParameter for another shape."""
    if text is None:
        return None
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if not (name and equals) or name in weights:
            raise typer.BadParameter(f"--weights needs NAME=W,... with each name once, got {text!r}")
        try:
            weights[name] = float(number)
        except ValueError as error:
            raise typer.BadParameter(f"--weights: {number!r} is not a number") from error
    return weights


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr with the time left, if someone is there to see it; yields what advances it."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn  # noqa: PLC0415

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task("rows", total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """An expected failure becomes one line on stderr and exit 2."""
    from assay_client.errors import AssayError  # noqa: PLC0415

    try:
        yield
    except (AssayError, OSError) as error:
        raise _failed(str(error)) from error


def _failed(message: str) -> typer.Exit:
    typer.echo("assay: " + " ".join(message.split()), err=True)
    return typer.Exit(EXIT_FAILED)


def _finish(tally: "Tally") -> None:
    typer.echo(f"{tally.scored} scored, {tally.failed} failed, fingerprint {tally.fingerprint or 'none'}", err=True)
    if tally.failed:
        typer.echo(f"first: {' '.join(str(tally.first_error).split())}", err=True)
        raise typer.Exit(EXIT_ITEMS_FAILED)


@dataclass
class Commands:
    """The whole command line.

    Attributes:
        app: own commands and those of every entry that could be loaded.
        extra_of: command -> the extra that brought it; own commands are missing.
        broken: extra -> why its commands are missing.
    """

    app: typer.Typer
    extra_of: dict[str, str] = field(default_factory=dict)
    broken: dict[str, ModuleNotFoundError] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Iterable[EntryPoint]) -> "Commands":
        """Own commands, then those of the entries; what an entry lacks costs only its own commands."""
        whole = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
        commands = cls(whole)
        whole.registered_commands += app.registered_commands
        for entry in entries:
            try:
                part: typer.Typer = entry.load()
            except ModuleNotFoundError as error:
                commands.broken[entry.name] = error
                continue
            whole.registered_commands += part.registered_commands
            whole.registered_groups += part.registered_groups
            commands.extra_of |= dict.fromkeys(typer.main.get_group(part).commands, entry.name)
        whole.callback()(assay)
        return commands


def _missing(extra: str, error: ModuleNotFoundError) -> str:
    """What to do about a missing module: install the extra, unless the module is our own."""
    if (error.name or "").startswith("assay_"):
        return f"the commands of {extra} cannot be loaded: {error}"
    return f'this command needs: pip install "assay-rewards[{extra}]"'


def main() -> None:
    """The entry point `assay`."""
    commands = Commands.of(entry_points(group=GROUP))
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    known = {*typer.main.get_group(commands.app).commands}
    if name and name not in known and commands.broken:
        for extra, error in commands.broken.items():
            _failed(f"{name}: {_missing(extra, error)}")
        sys.exit(EXIT_FAILED)
    try:
        commands.app(prog_name="assay")
    except ModuleNotFoundError as error:
        if name not in commands.extra_of or (error.name or "").startswith("assay_"):
            raise
        _failed(_missing(commands.extra_of[name], error))
        sys.exit(EXIT_FAILED)
