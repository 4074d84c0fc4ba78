"""Read YAML files, and refuse keys that occur twice."""

from pathlib import Path
from typing import IO

import yaml

from assay_service.errors import StartError

_MERGE = "tag:yaml.org,2002:merge"


def read_yaml(path: Path) -> object:
    """Read a YAML file.

    Raises:
        StartError: the file cannot be read, is not valid YAML, or has a mapping in which a key occurs twice.
    """
    try:
        with path.open(encoding="utf-8") as stream:  # a stream, because errors then name its file
            return yaml.load(stream, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise StartError(f"cannot be read: {error.strerror}; correct the path", source=str(path)) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise StartError(f"is not valid YAML: {said}; correct the file", source=str(path)) from error


class _UniqueKeys(yaml.SafeLoader):
    """A SafeLoader that refuses a key that occurs twice; PyYAML would silently take the last value."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        self._checked: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Check the mapping's own keys, then replace `<<` by the keys that it merges, as SafeLoader does.

        A key beside `<<` may override a merged key. Both are in the mapping afterwards, so the check comes first, and
        each mapping is checked only once.

        Raises:
            ConstructorError: a key occurs twice; the error has its line.
        """
        if node not in self._checked:
            self._checked.add(node)
            nodes = [key for key, _ in node.value if key.tag != _MERGE]
            # deep: a key that is a list would be empty at this point.
            keys = [self.construct_object(key, deep=True) for key in nodes]
            for number, key in enumerate(keys):
                if key in keys[:number]:
                    mark = nodes[number].start_mark
                    raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", mark)
        super().flatten_mapping(node)
