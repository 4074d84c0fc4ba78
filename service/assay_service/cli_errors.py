"""Print the errors that keep a command of the service from starting."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

EXIT_WRONG = 2  # the exit code of a wrong configuration, checkpoint or address, as for wrong options


@contextmanager
def print_start_errors(command: str) -> Iterator[None]:
    """Print a StartError to stderr without a traceback, and end the command with exit code 2.

    Raises:
        Exit: the block raised a StartError.
    """
    from assay_service.errors import StartError  # noqa: PLC0415

    try:
        yield
    except StartError as error:
        typer.echo(f"assay {command}: {error.message}", err=True)
        raise typer.Exit(EXIT_WRONG) from None
