"""Define the commands `assay keys add`, `assay keys list` and `assay keys remove`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay_service.cli_errors import print_start_errors

if TYPE_CHECKING:
    from assay_service.keys import Scope

app = typer.Typer(no_args_is_help=True, help="Manage the file with the API keys of a service.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of whoever has the key, which logs show.")]
KeyFilePath = Annotated[Path, typer.Option("--file", metavar="FILE", help="Key file; the service reads it by --keys.")]
DEFAULT = Path("keys.yaml")


@app.command("add")
def add(
    name: Name,
    scope: Annotated[
        list[str], typer.Option(metavar="SCOPE", help="What the key may do: score, metrics or admin; repeatable.")
    ],
    file: KeyFilePath = DEFAULT,
) -> None:
    """Make a new key, print it once, and write only its hash to the file.

    A running service reads the file again by itself.
    """
    with print_start_errors("keys add"):
        from assay_service.keys import add_key  # noqa: PLC0415

        scopes: list[Scope] = scope  # type: ignore[assignment]  # checked by add_key, with the values in its message
        typer.echo(add_key(file, name, scopes))
    typer.echo(f"{name} is in {file}, as a hash; this is the only time that the key is printed", err=True)


@app.command("list")
def list_keys(file: KeyFilePath = DEFAULT) -> None:
    """List the names and scopes of the keys in the file."""
    with print_start_errors("keys list"):
        from assay_service.keys import read_key_file  # noqa: PLC0415

        for key in read_key_file(file).keys:
            typer.echo(f"{key.name:<24} {', '.join(key.scopes)}")


@app.command("remove")
def remove(name: Name, file: KeyFilePath = DEFAULT) -> None:
    """Remove a key from the file; a running service refuses it from then on."""
    with print_start_errors("keys remove"):
        from assay_service.keys import remove_key  # noqa: PLC0415

        remove_key(file, name)
