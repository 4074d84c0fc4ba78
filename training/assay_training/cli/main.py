"""`assay train …` and `assay report`. Imports only typer and the standard library at the top; the rest later."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay_client.cli import LOCAL, Url
from assay_training.cli import evaluate
from assay_training.cli.errors import plain_errors

if TYPE_CHECKING:
    from assay_training.config.base import RunConfig

app = typer.Typer(no_args_is_help=True)
train = typer.Typer(no_args_is_help=True, help="Train models.")
app.add_typer(train, name="train")
app.add_typer(evaluate.app, name="evaluate")


def _printing(command: str) -> Callable[[bool], None]:
    """Return the callback of a command's `--example`, which prints a configuration to start from and ends it."""

    def show(wanted: bool) -> None:
        if wanted:
            from importlib.resources import files  # noqa: PLC0415 - only where it is asked for

            typer.echo(files("assay_training").joinpath("example_configs", f"{command}.yaml").read_text(), nl=False)
            raise typer.Exit

    return show


def _read_first(path: Path, kind: "type[RunConfig]") -> None:
    """Tell what is wrong with a configuration before torch is imported, which takes seconds.

    Raises:
        ConfigError: see `config.base.read`.
    """
    from assay_training.config.base import read  # noqa: PLC0415 - only when the command runs

    read(path, kind)


def _example(command: str) -> Any:  # noqa: ANN401 - typer's
    told = "Print a configuration to start from, and end."
    return typer.Option("--example", help=told, is_eager=True, callback=_printing(command))


Config = Annotated[Path, typer.Option(help="YAML configuration of the run.", exists=True, dir_okay=False)]
Data = Annotated[Path, typer.Option(help="Folder that holds the sources' folders.", exists=True, file_okay=False)]
Out = Annotated[Path | None, typer.Option(help="Run directory; default runs/NAME. A run that is there is resumed.")]


@train.command("reward")
def train_reward(
    config: Config, data: Data, out: Out = None, example: Annotated[bool, _example("reward")] = False
) -> None:
    """Train a preference or absolute reward model, and test it on held-out groups or fold by fold."""
    from assay_training.config.reward import RewardConfig  # noqa: PLC0415 - only when the command runs

    with plain_errors("train reward"):
        _read_first(config, RewardConfig)
        from assay_training.reward_model.command import run  # noqa: PLC0415 - heavy, only when the command runs

        checkpoint = run(config, data, out)
        if checkpoint is not None:
            typer.echo(checkpoint)


@train.command("sft")
def train_sft(config: Config, data: Data, out: Out = None, example: Annotated[bool, _example("sft")] = False) -> None:
    """Train a policy on dialogues or texts, in one stage or several."""
    from assay_training.config.sft import SftConfig  # noqa: PLC0415 - only when the command runs

    with plain_errors("train sft"):
        _read_first(config, SftConfig)
        from assay_training.sft import run  # noqa: PLC0415 - heavy, only when the command runs

        typer.echo(run(config, data, out))


@train.command("ppo")
def train_ppo(
    config: Config,
    data: Data,
    url: Url = LOCAL,
    out: Out = None,
    example: Annotated[bool, _example("ppo")] = False,
) -> None:
    """Train a policy on the rewards of a running service."""
    from assay_training.config.ppo import PpoConfig  # noqa: PLC0415 - only when the command runs

    with plain_errors("train ppo"):
        _read_first(config, PpoConfig)
        from assay_training.rl.ppo import run  # noqa: PLC0415 - heavy, only when the command runs

        typer.echo(run(config, data, out, url))


@train.command("rejection")
def train_rejection(
    config: Config,
    data: Data,
    url: Url = LOCAL,
    out: Out = None,
    example: Annotated[bool, _example("rejection")] = False,
) -> None:
    """Train a policy on the best of its own samples by a running service, in rounds."""
    from assay_training.config.rejection import RejectionConfig  # noqa: PLC0415 - only when the command runs

    with plain_errors("train rejection"):
        _read_first(config, RejectionConfig)
        from assay_training.rl.rejection import run  # noqa: PLC0415 - heavy, only when the command runs

        typer.echo(run(config, data, out, url))


@app.command("report")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", exists=True, file_okay=False)],
    as_json: evaluate.Json = False,
    html: evaluate.Html = None,
) -> None:
    """Lay runs over each other: what they came to, and with --html how they got there."""
    from assay_training.evaluation.runs import compare_runs  # noqa: PLC0415

    with plain_errors("report"):
        table = compare_runs(runs)
        read = [run / name for run in runs for name in ("run.json", "metrics.jsonl")]
        evaluate.finish(table, [path for path in read if path.is_file()], as_json, html)


@train.callback()
def _train() -> None:
    """Train models."""
    from assay_service.memory import keep_freed_memory  # noqa: PLC0415 - only for the command

    keep_freed_memory()
