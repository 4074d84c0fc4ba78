"""Check where requests go and with which key, before anything is sent."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from assay_client.errors import InvalidInput


def read_endpoints(base_url: str | Sequence[str]) -> tuple[str, ...]:
    """Return the addresses of a service, without a slash at the end.

    Raises:
        InvalidInput: there is no address, one occurs twice, or one is not an http or https address without credentials.
    """
    given = base_url if isinstance(base_url, Sequence) and not isinstance(base_url, str | bytes) else [base_url]
    urls = tuple(_check_url(url) for url in given)
    if not urls or len(set(urls)) != len(urls):
        raise InvalidInput("`base_url` must be an address, or a list of different addresses")
    return urls


def _check_url(base_url: object) -> str:
    # httpx takes an address without a scheme, and would fail only at the first request.
    if not isinstance(base_url, str) or not base_url.startswith(("http://", "https://")):
        raise InvalidInput(f"the service's address must begin with http:// or https:// and a host, not {base_url!r}")
    if "@" in base_url.split("/")[2]:
        # Neither repeated here nor accepted: httpx and this client print addresses in logs and errors.
        raise InvalidInput(
            "the service's address must not have a user name or password; give the key by `api_key` "
            "or `api_key_file`, and other schemes by `headers`"
        )
    if "?" in base_url or "#" in base_url:  # not repeated, because a query may hold a key
        raise InvalidInput(
            "the service's address must end before `?` and `#`, because paths are added to it; give a key by `api_key`"
        )
    if "," in base_url:
        raise InvalidInput(f"the service's address {base_url!r} has a comma; give several addresses as a list of texts")
    try:
        host = httpx.URL(base_url).host
    except httpx.InvalidURL as error:
        raise InvalidInput(f"the service's address {base_url!r} is not a valid URL: {error}") from error
    if not host:
        raise InvalidInput(f"the service's address {base_url!r} has no host")
    return base_url.rstrip("/")


def check_api_key(api_key: str, headers: Mapping[str, str]) -> None:
    """Check that a key can be sent; a message never repeats it.

    Raises:
        InvalidInput: the key is not visible ASCII, or `headers` have an Authorization, too.
    """
    # Otherwise the HTTP library would refuse the header, and repeat it in its error.
    if not isinstance(api_key, str) or not re.fullmatch(r"[\x21-\x7e]+", api_key):
        raise InvalidInput("`api_key` must be text of visible ASCII characters, without spaces and line breaks")
    if any(name.lower() == "authorization" for name in headers):
        raise InvalidInput("`api_key` and an Authorization in `headers` exclude each other: give one of them")


def read_api_key(path: str | None, name: str = "--api-key-file") -> str | None:
    """Return the API key in a file, without the line break at its end; None if no file is named.

    Args:
        path: the path of the file.
        name: the name of the option, for messages, which never repeat what is in the file.

    Raises:
        InvalidInput: the file cannot be read, is not text, or has no key.
    """
    if path is None:
        return None
    try:
        key = Path(path).read_text(encoding="ascii").strip()
    except OSError as error:
        raise InvalidInput(f"{name}: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:  # its text would repeat a part of the file
        key = ""
    if not key:
        raise InvalidInput(f"{name}: {path} must have one line of ASCII characters, the key")
    return key
