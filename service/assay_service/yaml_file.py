"""Read a YAML file in which every key stands once."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from assay_service.errors import StartError


def read_yaml(path: Path) -> object:
    """Read a YAML file in which no key occurs twice.

    Raises:
        StartError: it cannot be read.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise StartError(f"cannot be read: {error.strerror}", source=str(path)) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise StartError(f"not valid YAML: {' '.join(str(error).split())}", source=str(path)) from error


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that occurs twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As SafeLoader's, after a look at the keys."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = [key for key in keys if keys.count(key) > 1]
        if repeated:
            raise yaml.constructor.ConstructorError(None, None, f"key {repeated[0]!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)
