"""What every configuration has in common: frozen, strict, read from YAML with errors that name file and key."""

from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ConfigError(ValueError):
    """The configuration is wrong; the message names file and key."""


Name = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**31)]  # what torch and numpy both take


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


class _Loader(yaml.SafeLoader):
    """YAML in which no mapping has a key twice; the last one would win, silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping.

        Raises:
            yaml.constructor.ConstructorError: naming the key and its line.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


Config = TypeVar("Config", bound=RunConfig)


def read(path: Path, kind: type[Config]) -> Config:
    """Reads the configuration of a run of type `kind`.

    Raises:
        ConfigError: naming the file and the key.
    """
    try:
        raw: Any = yaml.load(path.read_text(), _Loader)  # noqa: S506 - a safe loader
        if raw is None:
            raise ConfigError(f"{path} is empty")
        config = kind.model_validate(raw)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {_told(error)}") from error
    template = (path.parent / config.template).resolve()
    if not template.is_file():
        raise ConfigError(f"{path}: template: {template} does not exist")
    return config.model_copy(update={"template": template})


def _told(error: ValidationError) -> str:
    """All that is wrong; keys that there are not come first, as a misspelt one is also missing elsewhere."""
    found = sorted(error.errors(), key=lambda of: of["type"] != "extra_forbidden")
    return "; ".join(f"{'.'.join(map(str, of['loc']))}: {of['msg']}" for of in found)
