"""`assay train reward`. Imports only typer and the standard library at the top; the rest when a command runs."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)
train = typer.Typer(no_args_is_help=True, help="Train models.")
app.add_typer(train, name="train")


@train.command("reward")
def train_reward(
    config: Annotated[Path, typer.Option(help="YAML configuration of the run.", exists=True, dir_okay=False)],
    data: Annotated[Path, typer.Option(help="Folder that holds the sources' folders.", exists=True, file_okay=False)],
    out: Annotated[
        Path | None, typer.Option(help="Run directory; default runs/NAME. A run that is there is resumed.")
    ] = None,
    dev: Annotated[
        bool, typer.Option("--dev", help="Only score the development part, to choose hyper-parameters.")
    ] = False,
) -> None:
    """Train a preference or absolute reward model: five folds for the model card, then the model that is served."""
    from assay_service.scoring.memory import keep_freed_memory  # noqa: PLC0415 - heavy, only when the command runs
    from assay_training.loops.crossfit import run  # noqa: PLC0415

    keep_freed_memory()
    try:
        run(config, data, out, dev_only=dev)
    except ValueError as error:  # wrong configuration, data or run directory; each message names the file and the mend
        typer.echo(f"assay train reward: {error}", err=True)
        raise typer.Exit(2) from None


@train.callback()
def _train() -> None:
    """Train models."""
