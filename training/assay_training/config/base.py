"""What every configuration has in common: frozen, strict, read from YAML with errors that name file and key."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ConfigError(ValueError):
    """The configuration is wrong; the message names file and key."""


Name = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]


class Frozen(BaseModel):
    """A part of a configuration: no field but those declared, none that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(Frozen):
    """The configuration of a run.

    Attributes:
        base: the model to start from: a path, `package:NAME`, or a hub id.
        revision: commit, tag or branch of a hub id.
        template: file with the Jinja chat template, relative to the configuration; absolute once it is read.
    """

    base: str
    revision: str | None = None
    template: Path


Config = TypeVar("Config", bound=RunConfig)


def read(path: Path, kind: type[Config]) -> Config:
    """Reads the configuration of a run of type `kind`.

    Raises:
        ConfigError: naming the file and the key.
    """
    try:
        raw: Any = yaml.safe_load(path.read_text())
        config = kind.model_validate(raw)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    template = (path.parent / config.template).resolve()
    if not template.is_file():
        raise ConfigError(f"{path}: template: {template} does not exist")
    return config.model_copy(update={"template": template})
