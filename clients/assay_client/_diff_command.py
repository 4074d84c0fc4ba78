"""Define the command `assay diff`: what another model or version does to scores, ranks and picks."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated, cast

import typer

from assay_client._reach import run_with_services
from assay_client._show import EXIT_ITEMS_FAILED, report_errors, show_difference, show_progress
from assay_client.options import (
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
    Weights,
    choose_target,
    parse_weights,
)

if TYPE_CHECKING:
    from assay_client._difference import Difference
    from assay_client.types import Truncation as TruncationName

Share = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, metavar="SHARE", help="Exit with 1 if a larger share of picks changed.", show_default=False
    ),
]


def diff(  # noqa: PLR0913  # the options of one command
    old_url: Annotated[str, typer.Argument(help="Address of the service as it was.", show_default=False)],
    new_url: Annotated[str, typer.Argument(help="Address of the service as it will be.", show_default=False)],
    file: File,
    *,
    output: Output = None,
    json: Json = False,
    model: Model = None,
    new_model: Annotated[str | None, typer.Option(help="Model of NEW_URL, if it has another name.")] = None,
    weights: Weights = None,
    truncation: Truncation = None,
    tokenizer_sha256: TokenizerSha256 = None,
    api_key_file: ApiKeyFile = None,
    max_difference: Annotated[
        float | None, typer.Option(min=0, help="Exit with 1 if a score differs by more.", show_default=False)
    ] = None,
    max_changed_picks: Share = None,
    worst: Annotated[int, typer.Option(min=0, help="Most examples of each kind.")] = 10,
    timeout: Timeout = 60.0,
    chunk_size: ChunkSize = 64,
    concurrency: Concurrency = 8,
    prompt_field: PromptField = "prompt",
    completion_field: CompletionField = "completion",
    messages_field: MessagesField = "messages",
) -> None:
    """Score a file by two services, and show what differs: scores, picks among `completions`, `chosen` and `rejected`.

    Exits with 0 if all rows were scored and no limit is exceeded, 1 otherwise, 2 if the command failed.
    """
    from assay_client._rows import Fields  # noqa: PLC0415
    from assay_client.diff import diff_file  # noqa: PLC0415

    urls = (old_url, new_url)
    compare = partial(
        diff_file,
        source=file,
        urls=urls,
        models=(model, new_model or model),
        weights=parse_weights(weights),
        truncation=cast("TruncationName | None", truncation),
        tokenizer_sha256=tokenizer_sha256,
        fields=Fields(prompt_field, completion_field, messages_field),
        most=worst,
        needs_picks=max_changed_picks is not None,
        silence_s=timeout,
    )
    call = partial(run_with_services, urls, api_key_file=api_key_file, chunk_size=chunk_size, concurrency=concurrency)
    found = _compare_and_show(file, choose_target(output, json), compare, call)
    _exit(found, found.find_breaches(max_difference, max_changed_picks))


def _compare_and_show(
    source: str,
    target: str | None,
    compare: Callable[..., Awaitable["Difference"]],
    call: Callable[[Callable[..., Awaitable["Difference"]]], "Difference"],
) -> "Difference":
    """Compare two services by a file, and print the result or write it.

    Args:
        source: the path of the input, or "-".
        target: the path of the output, or "-"; None prints tables.
        compare: the function that compares two clients.
        call: the function that calls another one with a client of each service.
    """
    from assay_client._output import check_targets, open_output  # noqa: PLC0415

    with report_errors(target):
        check_targets(source, target)
        # Opened first, so that an output that cannot be written costs no scoring.
        with open_output(target, None) if target is not None else nullcontext() as sink:
            with show_progress() as show:
                found = call(partial(compare, on_rows=show))
            show_difference(found) if sink is None else sink.write([found.to_json()], None)
    return found


def _exit(found: "Difference", breaches: Sequence[str]) -> None:
    """Print keys without effect and exceeded limits; end with 1 if a limit was exceeded or a row failed."""
    if found.extra:
        typer.echo(f"not part of a row, without effect: {', '.join(found.extra)}", err=True)
    for breach in breaches:
        typer.echo(breach, err=True)
    # A row without a score could hide a difference, so it is a failure even without a limit.
    if breaches or found.failed:
        raise typer.Exit(EXIT_ITEMS_FAILED)
