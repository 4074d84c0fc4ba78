"""Check a run's base and its rendered records before anything is written."""

from collections.abc import Mapping
from pathlib import Path

from assay_service.errors import StartError
from assay_service.scoring.architectures import longest_scaled, longest_sequence
from assay_service.scoring.files import read_config, resolve
from assay_training.config.base import ConfigError, RunConfig

LARGEST_REFUSED_SHARE = 0.5


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
    return [f"{key}: {line}; they are left out"] if total else []


def base_of(config: RunConfig) -> Path:
    """Return the directory of the base, which is fetched if it is on the hub.

    Raises:
        ConfigError: it is not there.
    """
    try:
        return resolve(config.base_reference, config.revision, Path("/"))
    except StartError as error:
        hint = "" if config.revision is not None else " (a hub id needs its `revision`)"
        raise ConfigError(f"base: {error}{hint}") from error


def check_length(name: str, max_length: int, base: Path) -> None:
    """The base has a position for every token; the service would refuse the checkpoint.

    Args:
        name: of the length in the configuration.
        max_length: tokens.
        base: a checkpoint.

    Raises:
        ConfigError: it has fewer.
    """
    config = read_config(base)
    positions = longest_sequence(config)
    if positions is not None and max_length > max(positions, longest_scaled(config) or 0):
        raise ConfigError(f"{name}: {max_length} is more than the {positions} positions of {base}")
