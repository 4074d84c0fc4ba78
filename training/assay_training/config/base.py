"""Read configurations from YAML into frozen, strict models, with errors that name file and key."""

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from assay_service.errors import StartError
from assay_service.yaml_file import read_yaml
from assay_training.config.wording import explain_errors, find_switches


class ConfigError(ValueError):
    """An error in a configuration; the message names the file and the key."""


PACKAGE_SCHEME = "package:"
_HUB_ID = re.compile(r"(?!\.)[\w.-]+/[\w.-]+")
# Names become names of files and of served signals.
Name = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**31)]  # the range that both torch and numpy accept


class Frozen(BaseModel):
    """A part of a configuration that refuses unknown keys and cannot be changed."""

    # Unknown keys are refused: a misspelled key would silently leave its default in force.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(Frozen):
    """The configuration of a run. Paths are relative to the folder of the YAML file; `~` is the home directory.

    Attributes:
        base: The model to start from: a path, `package:NAME` for the model of a Python package, or a hub id.
        revision: The commit, tag or branch of a base on the hub.
        template: A file with the Jinja chat template; null uses the template of the base.
    """

    base: str
    revision: str | None = None
    template: Path | None = None
    _folder: Path = PrivateAttr(default=Path())

    @property
    def base_reference(self) -> str:
        """Return the base: a path made absolute, or `package:NAME` or a hub id unchanged.

        A hub id is one that has a `revision`; a folder of the same name goes before it.
        """
        if self.base.startswith(PACKAGE_SCHEME):
            return self.base
        place = (self._folder / Path(self.base).expanduser()).resolve()
        # Only a revision distinguishes a hub id from a relative path that does not exist.
        on_hub = self.revision is not None and _HUB_ID.fullmatch(self.base) and not place.is_dir()
        return self.base if on_hub else str(place)


Config = TypeVar("Config", bound=RunConfig)


def read(path: Path, kind: type[Config]) -> Config:
    """Read the configuration of a run of type `kind`.

    Raises:
        ConfigError: the file cannot be read, or keys are wrong; the message names the file and every wrong key with
            its allowed values.
    """
    try:
        raw = read_yaml(path)
    except StartError as error:
        raise ConfigError(str(error)) from error
    if raw is None:
        raise ConfigError(f"{path} is empty")  # YAML of an empty file is None, not a mapping
    # Checked here, so that a missing file is reported together with all other wrong keys.
    template = _find_template(path.parent, raw)
    wrong = [] if template is None or template.is_file() else [f"template: {template}: no such file"]
    try:
        config = kind.model_validate(raw)
    except ValidationError as error:
        wrong = [*explain_errors(error, kind), *wrong]
    wrong += [line for line in find_switches(raw) if not any(other.startswith(line.split(" ")[0]) for other in wrong)]
    if wrong:
        raise ConfigError(f"{path}: " + "\n  ".join(wrong))
    config._folder = path.parent.resolve()
    return config.model_copy(update={"template": template})


def _find_template(folder: Path, raw: Any) -> Path | None:  # noqa: ANN401 - what YAML holds
    """Return the path of the template, before the rest of the configuration is validated."""
    given = raw.get("template") if isinstance(raw, dict) else None
    return (folder / Path(given).expanduser()).resolve() if isinstance(given, str) else None
