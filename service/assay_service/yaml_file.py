"""Read a YAML file in which no key occurs twice."""

from pathlib import Path

import yaml

from assay_service.errors import StartError

_MERGE = "tag:yaml.org,2002:merge"


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

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._checked: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """As SafeLoader's, which replaces `<<` by what it brings, after a look at the mapping's own keys.

        What stands beside `<<` overrides what it brings, so it occurs twice afterwards, and only then.
        """
        if node not in self._checked:
            self._checked.add(node)
            keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
            repeated = [key for key in keys if keys.count(key) > 1]
            if repeated:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {repeated[0]!r} occurs twice", node.start_mark
                )
        super().flatten_mapping(node)
