"""How a command ends that could not do what it was asked."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def plain_errors(command: str) -> Iterator[None]:
    """What a user can mend becomes a sentence and exit status 2, not a traceback.

    Wrong configuration, data or directory; files, hubs and services that cannot be reached; a loss that is no number;
    a run that stopped.
    """
    from assay_client.errors import AssayError  # noqa: PLC0415 - only when the command runs
    from assay_training.errors import RunStopped  # noqa: PLC0415

    try:
        yield
    except (ValueError, OSError, FloatingPointError, AssayError, RunStopped) as error:
        notes = getattr(error, "__notes__", [])
        typer.echo(f"assay {command}: {error}" + f" ({', '.join(notes)})" * bool(notes), err=True)
        raise typer.Exit(2) from None
