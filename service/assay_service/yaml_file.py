"""Read a YAML file in which no key occurs twice."""

from pathlib import Path
from typing import IO

import yaml

from assay_service.errors import StartError

_MERGE = "tag:yaml.org,2002:merge"


def read_yaml(path: Path) -> object:
    """Read a YAML file in which no key occurs twice.

    Raises:
        StartError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as stream:  # a stream, whose name and lines the errors give
            return yaml.load(stream, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise StartError(f"cannot be read: {error.strerror}", source=str(path)) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise StartError(f"not valid YAML: {' '.join(str(error).split())}", source=str(path)) from error


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that occurs twice, of which YAML would silently take the last."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        self._checked: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """As SafeLoader's, which replaces `<<` by what it brings, after a look at the mapping's own keys.

        What stands beside `<<` overrides what it brings, so it occurs twice afterwards, and only then.
        """
        if node not in self._checked:
            self._checked.add(node)
            nodes = [key for key, _ in node.value if key.tag != _MERGE]
            keys = [self.construct_object(key, deep=True) for key in nodes]
            for number, key in enumerate(keys):
                if key in keys[:number]:
                    mark = nodes[number].start_mark
                    raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", mark)
        super().flatten_mapping(node)
