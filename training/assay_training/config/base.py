"""What every configuration has in common: frozen, strict, read from YAML with errors that name file and key."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """The configuration is wrong; the message names file and key."""


class Frozen(BaseModel):
    """A part of a configuration: no field but those declared, none that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Config = TypeVar("Config", bound=Frozen)


def read(path: Path, kind: type[Config]) -> Config:
    """Reads a configuration of type `kind`.

    Raises:
        ConfigError: naming the file and the key.
    """
    try:
        raw: Any = yaml.safe_load(path.read_text())
        return kind.model_validate(raw)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
