"""Read and write the file with the API keys of a service, and find the key that a client sent.

The file has a keyed hash of each key, never the key itself. Keys are random and have 256 bits, so that nobody can guess
one from its hash, and a fast hash suffices. The work of one request does not grow with guesses.
"""

import hmac
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from assay_service.errors import StartError
from assay_service.scoring.atomic import write_atomically
from assay_service.signal_settings import Frozen, Name
from assay_service.validation import SHA256_PATTERN, explain, format_key
from assay_service.yaml_file import read_yaml

Scope = Literal["score", "metrics", "admin"]

PREFIX = "assay_"  # by it, scanners of repositories and logs find a key that leaked
_KEY_BYTES = 32
MAX_KEY_BYTES = 256  # a longer credential cannot be a key, and is not hashed


class Key(Frozen):
    """One API key.

    Attributes:
        name: name of whoever has the key, for logs, limits and removal.
        scopes: permissions of the key. `score` is every endpoint but `/metrics` (`metrics`) and `/admin/…` (`admin`).
        hmac_sha256: HMAC-SHA256 of the key under the salt of the file, in hexadecimal digits.
    """

    name: Name
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    hmac_sha256: str = Field(pattern=SHA256_PATTERN)


class KeyFile(Frozen):
    """The content of a key file.

    Attributes:
        salt: random key of the hashes, 64 hexadecimal digits; equal keys have different hashes in two files.
        keys: the keys; without any, every request is refused.
    """

    salt: str = Field(pattern=SHA256_PATTERN)
    keys: tuple[Key, ...]

    @model_validator(mode="after")
    def _check_names(self) -> "KeyFile":
        names = [key.name for key in self.keys]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the name {twice[0]!r} occurs twice; rename one key")
        return self

    def find(self, sent: bytes) -> Key | None:
        """Return the key that a client sent, or None; the time does not depend on which key it is, or how close."""
        if len(sent) > MAX_KEY_BYTES:
            return None
        digest, found = _hash(self.salt, sent), None
        for key in self.keys:  # all of them, also after a match
            if hmac.compare_digest(digest, key.hmac_sha256):
                found = key
        return found


def read_key_file(path: Path) -> KeyFile:
    """Read a key file, in YAML or JSON.

    Raises:
        StartError: the file cannot be read, or is not a key file; the error never repeats a value of the file.
    """
    raw = read_yaml(path)
    try:
        return KeyFile.model_validate(raw)
    except ValidationError as error:
        problems = [_format_problem(part["loc"], explain(part)) for part in error.errors(include_url=False)]
        raise StartError(*problems, source=str(path)) from None


def add_key(path: Path, name: str, scopes: Iterable[Scope]) -> str:
    """Add a new key to a key file, which is created if it is missing, and return the key.

    Args:
        path: path of the key file.
        name: name of whoever gets the key.
        scopes: permissions of the key.

    Raises:
        StartError: the file is not a key file or cannot be written, or the name is not valid or occurs in the file.
    """
    file = read_key_file(path) if path.exists() else KeyFile(salt=secrets.token_hex(32), keys=())
    key = PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    if any(known.name == name for known in file.keys):
        raise StartError(f"has a key named {name!r}; remove that key first, or give another name", source=str(path))
    try:
        entry = Key(name=name, scopes=tuple(dict.fromkeys(scopes)), hmac_sha256=_hash(file.salt, key.encode()))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StartError(f"{format_key(first['loc'])}: {explain(first)}; give another one") from None
    _write(path, file.model_copy(update={"keys": (*file.keys, entry)}))
    return key


def remove_key(path: Path, name: str) -> None:
    """Remove a key from a key file.

    Raises:
        StartError: the file is not a key file or cannot be written, or has no key of that name.
    """
    file = read_key_file(path)
    kept = tuple(key for key in file.keys if key.name != name)
    if len(kept) == len(file.keys):
        names = ", ".join(key.name for key in file.keys) or "none"
        raise StartError(f"has no key named {name!r}; give one of its names: {names}", source=str(path))
    _write(path, file.model_copy(update={"keys": kept}))


def _write(path: Path, file: KeyFile) -> None:
    text = yaml.safe_dump(file.model_dump(mode="json"), sort_keys=False)
    try:
        with write_atomically(path, durable=True) as fresh:
            fresh.touch(mode=0o600)  # before the text is in it
            fresh.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StartError(f"cannot be written: {error.strerror}; give another --file", source=str(path)) from error


def _hash(salt: str, key: bytes) -> str:
    return hmac.digest(bytes.fromhex(salt), key, "sha256").hex()


def _format_problem(location: tuple[Any, ...], text: str) -> str:
    key = format_key(location)
    return f"{key}: {text}; correct the file, or make keys by `assay keys add`" if key else f"{text}; correct the file"
