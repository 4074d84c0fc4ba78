"""Define `assay train …` and `assay report`.

Only light modules are imported at the top. Each command imports the rest when it runs, so that `--help` is fast.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay_client.options import LOCAL, ApiKeyFile, Url
from assay_training.cli import evaluate
from assay_training.cli.errors import plain_errors
from assay_training.cli.options import Html, Json

if TYPE_CHECKING:
    from assay_training.config.base import RunConfig

app = typer.Typer(no_args_is_help=True)
train = typer.Typer(no_args_is_help=True, help="Train models.")
app.add_typer(train, name="train")
app.add_typer(evaluate.app, name="evaluate")


def _make_example_callback(command: str) -> Callable[[bool], None]:
    """Return the callback of a command's `--example`, which prints an example configuration and exits."""

    def print_example(is_requested: bool) -> None:
        if is_requested:
            from importlib.resources import files  # noqa: PLC0415 - only if it is requested

            typer.echo(files("assay_training").joinpath("example_configs", f"{command}.yaml").read_text(), nl=False)
            raise typer.Exit

    return print_example


def _check_config(path: Path, kind: "type[RunConfig]") -> None:
    """Check a configuration before torch is imported, which takes seconds.

    Args:
        path: YAML file of the configuration.
        kind: class of the configuration.

    Raises:
        ConfigError: the file cannot be read, or a key or a value is wrong.
    """
    from assay_training.config.base import read  # noqa: PLC0415 - only when the command runs

    read(path, kind)


def _make_example_option(command: str) -> Any:  # noqa: ANN401 - typer's
    # Eager options are handled before the others are checked, so that --example needs neither --config nor --data.
    return typer.Option(
        "--example",
        help="Print an example configuration and exit.",
        is_eager=True,
        callback=_make_example_callback(command),
    )


Config = Annotated[Path, typer.Option(help="YAML configuration of the run.", exists=True, dir_okay=False)]
Data = Annotated[Path, typer.Option(help="Folder with a folder for each source.", exists=True, file_okay=False)]
Out = Annotated[Path | None, typer.Option(help="Run directory; default runs/NAME. A run already in it is resumed.")]


@train.command("reward")
def train_reward(
    config: Config, data: Data, out: Out = None, example: Annotated[bool, _make_example_option("reward")] = False
) -> None:
    """Train a reward model, or several heads on one trunk, and test it on held-out groups or by cross-validation."""
    from assay_training.config.joint import JointConfig, has_several_heads  # noqa: PLC0415 - only when the command runs
    from assay_training.config.reward import RewardConfig  # noqa: PLC0415

    # The configuration is checked first: importing torch takes seconds, an error in a key should not.
    with plain_errors("train reward"):
        _check_config(config, JointConfig if has_several_heads(config) else RewardConfig)
        from assay_training.reward_model.command import run  # noqa: PLC0415 - heavy, only when the command runs

        checkpoint = run(config, data, out)
        if checkpoint is not None:
            typer.echo(checkpoint)


@train.command("sft")
def train_sft(
    config: Config, data: Data, out: Out = None, example: Annotated[bool, _make_example_option("sft")] = False
) -> None:
    """Train a policy on dialogues or texts by supervised fine-tuning, in one or more stages."""
    from assay_training.config.sft import SftConfig  # noqa: PLC0415 - only when the command runs

    with plain_errors("train sft"):
        _check_config(config, SftConfig)
        from assay_training.sft import run  # noqa: PLC0415 - heavy, only when the command runs

        typer.echo(run(config, data, out))


@train.command("ppo")
def train_ppo(
    config: Config,
    data: Data,
    url: Url = LOCAL,
    api_key_file: ApiKeyFile = None,
    out: Out = None,
    example: Annotated[bool, _make_example_option("ppo")] = False,
) -> None:
    """Train a policy by PPO on the rewards of a running service."""
    from assay_training.config.ppo import PpoConfig  # noqa: PLC0415 - only when the command runs

    with plain_errors("train ppo"):
        _check_config(config, PpoConfig)
        from assay_client._addresses import read_api_key  # noqa: PLC0415
        from assay_training.rl.ppo import run  # noqa: PLC0415 - heavy, only when the command runs

        typer.echo(run(config, data, out, url, read_api_key(api_key_file)))


@train.command("rejection")
def train_rejection(
    config: Config,
    data: Data,
    url: Url = LOCAL,
    api_key_file: ApiKeyFile = None,
    out: Out = None,
    example: Annotated[bool, _make_example_option("rejection")] = False,
) -> None:
    """Train a policy by rejection sampling, on its own completions with the best rewards of a running service."""
    from assay_training.config.rejection import RejectionConfig  # noqa: PLC0415 - only when the command runs

    with plain_errors("train rejection"):
        _check_config(config, RejectionConfig)
        from assay_client._addresses import read_api_key  # noqa: PLC0415
        from assay_training.rl.rejection import run  # noqa: PLC0415 - heavy, only when the command runs

        typer.echo(run(config, data, out, url, read_api_key(api_key_file)))


@app.command("report")
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Directories of the runs.", exists=True, file_okay=False)
    ],
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Compare runs in a table of their last steps and, with --html, in plots over all steps."""
    from assay_training.evaluation.runs import compare_runs  # noqa: PLC0415

    with plain_errors("report"):
        table = compare_runs(runs)
        inputs = [run / name for run in runs for name in ("run.json", "metrics.jsonl")]
        # A run that was just started has no metrics yet.
        evaluate.show_table(table, [path for path in inputs if path.is_file()], as_json, html)


@train.callback()
def _train() -> None:
    """Train models."""
    from assay_service.memory import keep_freed_memory  # noqa: PLC0415 - only for the command

    keep_freed_memory()
