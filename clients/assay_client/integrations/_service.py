"""Read from a trainer's configuration which service to ask, and how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assay_client._addresses import read_api_key, read_endpoints
from assay_client.errors import InvalidInput

# The settings of `RewardClient` that a configuration may have besides `url` and `api_key_file`.
SECONDS = ("timeout_s", "deadline_s")
COUNTS = ("max_retries", "chunk_size", "max_concurrency")


@dataclass(frozen=True)
class Service:
    """A service and the settings of its clients: can be hashed and pickled; its repr does not have the API key.

    Attributes:
        urls: the addresses, which serve the same models.
        api_key: the key that clients send.
        ca_file: the path of a PEM file with the certificates that clients trust; None means the usual ones.
        settings: pairs of name and value of the other arguments of a client.
    """

    urls: tuple[str, ...]
    api_key: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    settings: tuple[tuple[str, float], ...] = ()

    def to_arguments(self) -> dict[str, Any]:
        """Return the arguments of `RewardClient` and `AsyncRewardClient`."""
        return {"base_url": self.urls, "api_key": self.api_key, "ca_file": self.ca_file, **dict(self.settings)}


def read_service(config: Mapping[str, Any]) -> Service:
    """Return the service that a configuration names.

    Args:
        config: `url`, an address or a list of them. Optional are `api_key_file`, the path of a file with the API key,
            and `ca_file`, `timeout_s`, `deadline_s`, `max_retries`, `chunk_size` and `max_concurrency` of
            `RewardClient`.

    Raises:
        InvalidInput: a value is missing, has another form, or the file has no key; the message names the option.
    """
    urls, path, ca_file = (
        _read_urls(config.get("url")),
        _read_path(config, "api_key_file"),
        _read_path(config, "ca_file"),
    )
    return Service(urls, read_api_key(path, "api_key_file"), ca_file, tuple(_read_settings(config).items()))


def _read_path(config: Mapping[str, Any], name: str) -> str | None:
    path = config.get(name)
    if path is not None and not isinstance(path, str):
        raise InvalidInput(f"`{name}` must be the path of a file, as text, not {type(path).__name__}")
    return path


def _read_urls(url: Any) -> tuple[str, ...]:
    if not url or not isinstance(url, str | Sequence):
        raise InvalidInput("the configuration needs `url`, the address of the service as text, or a list of addresses")
    try:
        return read_endpoints(url)
    except InvalidInput as error:
        raise InvalidInput(f"`url`: {error}") from None


def _read_settings(config: Mapping[str, Any]) -> dict[str, float]:
    settings: dict[str, float] = {}
    for name in (*SECONDS, *COUNTS):
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int if name in COUNTS else int | float):
            raise InvalidInput(f"`{name}` must be a {'whole ' * (name in COUNTS)}number, not {value!r}")
        settings[name] = value
    return settings
