"""Print the errors of a command as one sentence and end it with exit status 2."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def plain_errors(command: str) -> Iterator[None]:
    """Print an error that the user can fix as a sentence, without a traceback, and exit with status 2.

    These are a wrong configuration, wrong data or a wrong directory, and files, hubs and services that cannot be
    reached. Others are a loss that is not finite, and a run that stopped. Other errors are bugs and keep their
    traceback.

    Args:
        command: name of the command after `assay`, for the message.

    Raises:
        typer.Exit: the body raised such an error.
    """
    from assay_client.errors import AssayError  # noqa: PLC0415 - only when the command runs
    from assay_training.errors import RunStopped  # noqa: PLC0415

    try:
        yield
    except (ValueError, OSError, FloatingPointError, AssayError, RunStopped) as error:
        # Notes hold what the place that raised the error did not know, such as the step of a run.
        notes = getattr(error, "__notes__", [])
        typer.echo(f"assay {command}: {error}" + f" ({', '.join(notes)})" * bool(notes), err=True)
        raise typer.Exit(2) from None
