"""Collect the commands of the other packages, as far as the libraries that they need are installed."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint

import typer
import typer.main

GROUP = "assay.commands"
EXTRAS = {"service": "service,embedded"}  # the extras that an entry's commands need, if not the one of its name
INSTALL = (
    "pip install '.[{extras}]' in a checkout, or pip install 'assay-rewards[{extras}] @ git+URL' "
    "with the URL of the repository (it is not on PyPI)"
)


@dataclass
class Commands:
    """The whole command line.

    Attributes:
        app: the client's commands and those of every entry that could be loaded.
        extra_of: the extra of each command, by its name; the client's own commands are not in it.
        broken: the error that keeps an extra's commands from loading, by its name.
    """

    app: typer.Typer
    extra_of: dict[str, str] = field(default_factory=dict)
    broken: dict[str, ModuleNotFoundError] = field(default_factory=dict)

    @classmethod
    def of(cls, own: typer.Typer, entries: Iterable[EntryPoint]) -> "Commands":
        """Collect the client's commands and those of the entries; an entry that cannot be loaded loses only its own."""
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
            # The built group, because a command gets its name only when typer builds it.
            commands.extra_of |= dict.fromkeys(typer.main.get_group(part).commands, entry.name)
        return commands


def explain_missing(extra: str, error: ModuleNotFoundError) -> str:
    """Return a sentence on how to fix a missing module: install the extras, unless the module is Assay's own."""
    if (error.name or "").startswith("assay_"):
        return f"the commands of {extra} cannot be loaded: {error}"
    return f"this command needs {error.name}: {INSTALL.format(extras=EXTRAS.get(extra, extra))}"
