"""The commands of the other packages, as far as what they need is installed."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint

import typer
import typer.main

GROUP = "assay.commands"
EXTRAS = {"service": "service,embedded"}  # what brings all that the commands of an entry need; else its own name
INSTALL = (
    "pip install '.[{extras}]' in a checkout, or pip install 'assay-rewards[{extras}] @ git+URL' "
    "with the URL of the repository (it is not on PyPI)"
)


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
    def of(cls, own: typer.Typer, entries: Iterable[EntryPoint]) -> "Commands":
        """Own commands, then those of the entries; what an entry lacks costs only its own commands."""
        whole = typer.Typer(
            no_args_is_help=True,
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["-h", "--help"]},
        )
        commands = cls(whole)
        whole.registered_callback = own.registered_callback
        whole.registered_commands += own.registered_commands
        for entry in entries:
            try:
                part: typer.Typer = entry.load()
            except ModuleNotFoundError as error:
                commands.broken[entry.name] = error
                continue
            whole.registered_commands += part.registered_commands
            whole.registered_groups += part.registered_groups
            commands.extra_of |= dict.fromkeys(typer.main.get_group(part).commands, entry.name)
        return commands


def missing(extra: str, error: ModuleNotFoundError) -> str:
    """What to do about a missing module: install the extras, unless the module is our own."""
    if (error.name or "").startswith("assay_"):
        return f"the commands of {extra} cannot be loaded: {error}"
    return f"this command needs {error.name}: {INSTALL.format(extras=EXTRAS.get(extra, extra))}"
