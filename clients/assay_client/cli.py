"""Run the command line `assay`: `score`, `rank`, `compare`, `render`, `diff`, and the commands that the extras add.

Only typer and the standard library are imported at the top, so that `assay serve --help` is quick.
The functions below import the rest where they begin.
"""

import sys
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Annotated, cast

import typer
import typer.main

from assay_client._commands import GROUP, Commands, explain_missing
from assay_client._diff_command import diff
from assay_client._reach import reach, run_with_services
from assay_client._show import (
    EXIT_FAILED,
    finish,
    report_errors,
    report_failure,
    show_comparison,
    show_progress,
    show_rank,
    show_rendered,
)
from assay_client.options import (
    LOCAL,
    ApiKeyFile,
    ChunkSize,
    CompletionField,
    Concurrency,
    File,
    Json,
    MessagesField,
    Model,
    Output,
    PromptField,
    Timeout,
    TokenizerSha256,
    Truncation,
    Url,
    Weights,
    choose_target,
    parse_weights,
)

if TYPE_CHECKING:
    from assay_client._isolation import Ranking
    from assay_client._rows import RankRow
    from assay_client.types import Truncation as TruncationName

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"assay {version('assay-rewards')}")
        raise typer.Exit


@app.callback()
def read_global_options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Score completions with reward models."""


@app.command()
def score(  # noqa: PLR0913  # the options of one command
    file: File,
    *,
    output: Annotated[str, typer.Option("-o", "--output", help="Output file; - is stdout.")] = "-",
    model: Model = None,
    weights: Weights = None,
    truncation: Truncation = None,
    tokenizer_sha256: TokenizerSha256 = None,
    url: Url = LOCAL,
    api_key_file: ApiKeyFile = None,
    timeout: Timeout = 60.0,
    chunk_size: ChunkSize = 64,
    concurrency: Concurrency = 8,
    prompt_field: PromptField = "prompt",
    completion_field: CompletionField = "completion",
    messages_field: MessagesField = "messages",
    errors: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the items that failed to this file as well.", show_default=False),
    ] = None,
) -> None:
    """Score each item of a file, one output row per input row. The same command continues where an earlier one stopped.

    Files that are called ….parquet are read and written as Parquet, and all others as JSON.

    Exits with 0 if all items were scored, 1 if some failed (their rows hold the error), 2 if the command failed.
    """
    from assay_client import bulk  # noqa: PLC0415
    from assay_client._rows import Fields  # noqa: PLC0415

    # Parsed first: a wrong option is an error of usage, which typer reports itself.
    parsed = parse_weights(weights)
    with report_errors(output), show_progress() as show:
        tally = run_with_services(
            [url],
            lambda service: bulk.score_file(
                service,
                file,
                output,
                model=model,
                weights=parsed,
                truncation=cast("TruncationName | None", truncation),
                tokenizer_sha256=tokenizer_sha256,
                fields=Fields(prompt_field, completion_field, messages_field),
                silence_s=timeout,
                errors=errors,
                on_rows=show,
            ),
            api_key_file=api_key_file,
            chunk_size=chunk_size,
            concurrency=concurrency,
        )
    finish(tally)


@app.command()
def rank(  # noqa: PLR0913  # the options of one command
    file: File,
    *,
    output: Output = None,
    json: Json = False,
    model: Model = None,
    weights: Weights = None,
    top_n: Annotated[int | None, typer.Option(min=1, help="Show only the best N.")] = None,
    url: Url = LOCAL,
    api_key_file: ApiKeyFile = None,
    timeout: Timeout = 60.0,
    concurrency: Concurrency = 8,
) -> None:
    """Rank the completions of each row of a file, best first.

    Exits with 0 if all completions were scored, 1 if some failed, 2 if the command failed.
    """
    from assay_client import bulk  # noqa: PLC0415

    target, parsed = choose_target(output, json), parse_weights(weights)

    # Shown while rows arrive, because a person watches a table.
    def show_row(index: int, row: "RankRow", result: "Ranking") -> None:
        if target is None:
            show_rank(index, row, result)

    with report_errors(target), show_progress() as show:
        tally = run_with_services(
            [url],
            lambda service: bulk.rank_file(
                service,
                file,
                target,
                model=model,
                weights=parsed,
                top_n=top_n,
                silence_s=timeout,
                on_row=show_row,
                on_rows=show,
            ),
            api_key_file=api_key_file,
            concurrency=concurrency,
        )
    finish(tally)


@app.command()
def compare(  # noqa: PLR0913  # the options of one command
    *,
    prompt: Annotated[str, typer.Option(help="Prompt that both completions answer.")],
    a: Annotated[str, typer.Option(help="First completion.")],
    b: Annotated[str, typer.Option(help="Second completion.")],
    output: Output = None,
    json: Json = False,
    model: Annotated[str | None, typer.Option(help="Compare by this signal or blend alone.")] = None,
    url: Url = LOCAL,
    api_key_file: ApiKeyFile = None,
) -> None:
    """Compare two completions under every signal and blend; a positive margin favors A."""
    from assay_client import _addresses, client  # noqa: PLC0415
    from assay_client._answers import encode_comparison  # noqa: PLC0415
    from assay_client._output import open_output  # noqa: PLC0415

    target = choose_target(output, json)
    with report_errors(target):
        api_key = _addresses.read_api_key(api_key_file)
        reach(url, api_key)
        with client.RewardClient(url, api_key=api_key) as service:
            result = service.compare(prompt, a, b, model=model)
        if target is None:
            show_comparison(result)
        else:
            with open_output(target, None) as sink:
                sink.write([encode_comparison(result)], result.provenance.fingerprint)


@app.command()
def render(  # noqa: PLR0913  # the options of one command
    file: File,
    *,
    output: Output = None,
    json: Json = False,
    model: Annotated[str | None, typer.Option(help="Show only the signals of this signal or blend.")] = None,
    truncation: Truncation = None,
    tokenizer_sha256: TokenizerSha256 = None,
    url: Url = LOCAL,
    api_key_file: ApiKeyFile = None,
    timeout: Timeout = 60.0,
    prompt_field: PromptField = "prompt",
    completion_field: CompletionField = "completion",
    messages_field: MessagesField = "messages",
) -> None:
    """Show how every signal reads each item of a file: its text, its token ids, and the position of the score."""
    from assay_client import bulk  # noqa: PLC0415
    from assay_client._rows import Fields  # noqa: PLC0415

    target = choose_target(output, json)
    with report_errors(target):
        tally = run_with_services(
            [url],
            lambda service: bulk.render_file(
                service,
                file,
                target,
                model=model,
                truncation=cast("TruncationName | None", truncation),
                tokenizer_sha256=tokenizer_sha256,
                fields=Fields(prompt_field, completion_field, messages_field),
                silence_s=timeout,
                on_item=show_rendered if target is None else lambda item: None,
            ),
            api_key_file=api_key_file,
        )
    finish(tally, "rendered")


app.command()(diff)


def main() -> None:
    """Run the command line; this is the entry point `assay`."""
    commands = Commands.of(app, entry_points(group=GROUP))
    # The first word that is not an option: no option before a command takes a value.
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    known = {*typer.main.get_group(commands.app).commands}
    # An unknown command may be one of an extra that is not installed; typer would only say that it is unknown.
    if name and name not in known and commands.broken:
        for extra, error in commands.broken.items():
            report_failure(f"{name}: {explain_missing(extra, error)}")
        sys.exit(EXIT_FAILED)
    try:
        commands.app(prog_name="assay")
    except ModuleNotFoundError as error:
        # A missing module of Assay itself is a defect, which needs its traceback.
        if name not in commands.extra_of or (error.name or "").startswith("assay_"):
            raise
        report_failure(explain_missing(commands.extra_of[name], error))
        sys.exit(EXIT_FAILED)
