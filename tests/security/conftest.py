"""A service with API keys, and its certificate."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from assay_service import create_app
from assay_service.keys import add_key
from tests.real_tokenizers import unavailable
from tests.service.conftest import tiny

__all__ = ["tiny"]


@dataclass(frozen=True)
class Guarded:
    """A service with a key for each scope, one of them with all."""

    client: TestClient
    file: Path
    keys: dict[str, str]

    def ask(self, path: str, key: str | None = None, method: str = "GET", **options: Any) -> Any:
        headers = {} if key is None else {"Authorization": f"Bearer {self.keys.get(key, key)}"}
        return self.client.request(method, path, headers=headers | options.pop("headers", {}), **options)


@pytest.fixture(scope="session")
def guarded(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    keys = {name: add_key(file, name, (name,)) for name in ("score", "metrics", "admin")}
    keys["all"] = add_key(file, "all", ("score", "metrics", "admin"))
    settings = tiny["settings"].model_copy(update={"keys": str(file)})
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield Guarded(client, file, keys)


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for 127.0.0.1, and its private key."""

    certificate: Path
    key: Path


def make_certificate(directory: Path) -> Certificate:
    """Make a certificate with the program openssl; where there is none, skip the calling test, or fail it in CI."""
    if shutil.which("openssl") is None:
        unavailable("no openssl is installed")
    made = Certificate(directory / "tls.crt", directory / "tls.key")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=assay-test"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {made.key} -out {made.certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return made
