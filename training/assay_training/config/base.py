"""What every configuration has in common: frozen, strict, read from YAML with errors that name file and key."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from assay_training.config.wording import explained, switches


class ConfigError(ValueError):
    """The configuration is wrong; the message names file and key."""


PACKAGE_SCHEME = "package:"
_HUB_ID = re.compile(r"(?!\.)[\w.-]+/[\w.-]+")
Name = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**31)]  # what torch and numpy both take


class Frozen(BaseModel):
    """A part of a configuration: no field but those declared, none that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(Frozen):
    """The configuration of a run. Paths are relative to the folder of the YAML file; `~` is the home directory.

    Attributes:
        base: The model to start from: a path, `package:NAME` for weights that a Python package carries, or a hub id.
        revision: The commit, tag or branch of a hub id.
        template: A file with the Jinja chat template; null takes the base's own.
    """

    base: str
    revision: str | None = None
    template: Path | None = None
    _folder: Path = PrivateAttr(default=Path())

    @property
    def base_reference(self) -> str:
        """The base, a path made absolute; `package:NAME` and a hub id, which has a revision, as they are written."""
        if self.base.startswith(PACKAGE_SCHEME):
            return self.base
        place = (self._folder / Path(self.base).expanduser()).resolve()
        on_hub = self.revision is not None and _HUB_ID.fullmatch(self.base) and not place.is_dir()
        return self.base if on_hub else str(place)


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
    """Read the configuration of a run of type `kind`.

    Raises:
        ConfigError: naming the file, and every key that is wrong with the values that are allowed.
    """
    try:
        raw: Any = yaml.load(path.read_text(), _Loader)  # noqa: S506 - a safe loader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if raw is None:
        raise ConfigError(f"{path} is empty")
    template = _template(path.parent, raw)
    wrong = [] if template is None or template.is_file() else [f"template: {template}: no such file"]
    try:
        config = kind.model_validate(raw)
    except ValidationError as error:
        wrong = [*explained(error, kind), *wrong]
    wrong += [line for line in switches(raw) if not any(of.startswith(line.split(" ")[0]) for of in wrong)]
    if wrong:
        raise ConfigError(f"{path}: " + "\n  ".join(wrong))
    config._folder = path.parent.resolve()
    return config.model_copy(update={"template": template})


def _template(folder: Path, raw: Any) -> Path | None:  # noqa: ANN401 - what YAML holds
    """Where the template of a configuration is, before the rest of it is known to be right."""
    given = raw.get("template") if isinstance(raw, dict) else None
    return (folder / Path(given).expanduser()).resolve() if isinstance(given, str) else None
