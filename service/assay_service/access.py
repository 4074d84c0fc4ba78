"""Check the files that protect a service, before anything is loaded: its API keys and its TLS certificate."""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay_service.errors import Problems, StartError
from assay_service.keys import read_key_file
from assay_service.settings import Settings


def declare_access(
    raw: object, keys: Path | None, certificate: Path | None, key: Path | None, *, insecure: bool
) -> object:
    """Return a configuration with the options of the command line, which take the place of its own keys.

    Args:
        raw: content of the YAML file.
        keys: path of the key file; None keeps the configuration's.
        certificate: path of the certificate; None keeps the configuration's.
        key: path of the certificate's private key; None keeps the configuration's.
        insecure: True allows other addresses than loopback without keys; False keeps the configuration's.

    Raises:
        StartError: only one of certificate and key is given.
    """
    if (certificate is None) != (key is None):
        raise StartError("--tls-certificate and --tls-key belong together; give both")
    declared: dict[str, Any] = {"insecure": True} if insecure else {}
    # Absolute, because these paths start at the working directory, and those of a file at its folder.
    if keys is not None:
        declared["keys"] = str(keys.absolute())
    if certificate is not None and key is not None:
        declared["tls"] = {"certificate": str(certificate.absolute()), "key": str(key.absolute())}
    return {**raw, **declared} if isinstance(raw, Mapping) else raw


def check_access(settings: Settings) -> ssl.SSLContext | None:
    """Check the key file and the files of TLS, and return the context of TLS; None for a service without TLS.

    Raises:
        StartError: a file cannot be read, or is not what it should be; the error lists all problems.
    """
    problems, context = Problems(), None
    if settings.keys is not None:
        path = settings.find_path(settings.keys)
        with problems.collected(f"keys: {path}"):
            read_key_file(path)
    if settings.admin_root is not None and not (root := settings.find_path(settings.admin_root)).is_dir():
        problems.lines.append(f"admin_root: {root}: no such directory; create it, or correct the path")
    with problems.collected("tls"):
        if settings.tls is not None:
            context = _load(settings.find_path(settings.tls.certificate), settings.find_path(settings.tls.key))
    problems.raise_any()
    return context


def _load(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the context of a server with a certificate; it speaks TLS 1.2 and newer."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # The password keeps a key that has one from asking for it at the terminal.
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:  # SSLError is one
        reason = error.strerror if not isinstance(error, ssl.SSLError) else error.reason or "they are not in PEM format"
        raise StartError(
            f"{certificate} and {key} cannot be used: {reason}; give a certificate in PEM format, and its private key "
            "without a password"
        ) from error
    return context
