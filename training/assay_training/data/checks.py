"""Check a run's base and its rendered records before anything is written."""

from collections.abc import Mapping
from pathlib import Path

from assay_service.errors import StartError
from assay_service.scoring.architectures import find_longest_scaled, find_longest_sequence
from assay_service.scoring.files import read_config, resolve
from assay_training.config.base import PACKAGE_SCHEME, ConfigError, RunConfig

LARGEST_REFUSED_SHARE = 0.5  # above it, the template or max_length is wrong for the data, not a few rows


def check_refused(refused: Mapping[str, int], records: int, key: str = "sources") -> list[str]:
    """Return the lines to print about refused records, if most records could be rendered.

    Otherwise a run would learn from a remnant of its data.

    Args:
        refused: the number of records that the renderer refused, by error code.
        records: the number of all records.
        key: the key of the configuration that names the records.

    Raises:
        ConfigError: more than half of the records were refused.
    """
    total, counts = sum(refused.values()), ", ".join(f"{code}: {count}" for code, count in sorted(refused.items()))
    line = f"{total} of {records} records cannot be rendered ({counts})"
    if total > LARGEST_REFUSED_SHARE * records:
        raise ConfigError(f"{key}: {line}")
    return [f"{key}: {line}; they are dropped"] if total else []


def find_base(config: RunConfig) -> Path:
    """Return the directory of the base, which is downloaded if it is on the hub.

    Raises:
        ConfigError: the base is neither a directory, a package's weights nor on the hub; or it asks for remote code.
    """
    try:
        base = resolve(config.base_reference, config.revision, Path("/"))
    except StartError as error:
        is_clear = config.revision is not None or config.base.startswith(PACKAGE_SCHEME)
        hint = "" if is_clear else " (a hub id needs its `revision`)"
        raise ConfigError(f"base: {error}{hint}") from error
    path = base / "config.json"
    if path.is_file() and "auto_map" in read_config(base):
        raise ConfigError(
            f"base: {path}: `auto_map` asks for remote code, which is never run; if transformers has the architecture "
            "of its own, remove `auto_map` from a copy of the file"
        )
    return base


def check_length(name: str, max_length: int, base: Path) -> None:
    """Check that the base has a position for every token; the service would refuse the checkpoint otherwise.

    Args:
        name: name of the length in the configuration.
        max_length: largest number of tokens.
        base: directory of the base.

    Raises:
        ConfigError: the base has fewer positions than max_length.
    """
    config = read_config(base)
    positions = find_longest_sequence(config)
    if positions is not None and max_length > max(positions, find_longest_scaled(config) or 0):
        raise ConfigError(f"{name}: {max_length} is more than the {positions} positions of {base}; lower {name}")
