"""schemathesis over the whole OpenAPI document of a real process, with and without its API key.

Bodies that fit the document and bodies that break it, every check, and a fixed seed.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from assay_service.keys import add_key
from tests.faults.service import Service, serve
from tests.service.conftest import tiny

__all__ = ["tiny"]

pytestmark = pytest.mark.slow

ST = Path(sys.executable).with_name("st")
# What a schema cannot say, such as a role that the template does not know, is refused by a documented body: 400 or 422
# as the wire has it, and 413 where a limit of the configuration is exceeded.
SETTINGS = """
[generation]
database = "none"

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "404", "413", "422"]

[checks.negative_data_rejection]
expected-statuses = ["4xx"]
"""


@dataclass(frozen=True)
class Documented:
    """A process with API keys, its OpenAPI document, and the option that sends a key with all scopes."""

    service: Service
    document: Path
    key: tuple[str, str]


@pytest.fixture(scope="module")
def documented(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Documented]:
    folder = tmp_path_factory.mktemp("openapi")
    header = f"Bearer {add_key(folder / 'keys.yaml', 'all', ('score', 'metrics', 'admin'))}"
    with serve([tiny["root"] / "service.yaml"], "--keys", str(folder / "keys.yaml")) as (service,):
        answer = httpx.get(f"{service.url}/openapi.json", headers={"Authorization": header}, timeout=60)
        (folder / "openapi.json").write_text(answer.raise_for_status().text)
        yield Documented(service, folder / "openapi.json", ("--header", f"Authorization: {header}"))
        assert service.find_crashes() == []


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("keys", ["without", "with"])
def test_every_answer_is_documented(documented: Documented, keys: str, mode: str, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    options = ["--url", documented.service.url, "--checks", "all", "--mode", mode, "--seed", "1", "--max-examples", "5"]
    # Without a key everything is a 401: nobody learns which methods a path has.
    options += documented.key if keys == "with" else ("--exclude-checks", "unsupported_method")
    options += ["--no-shrink", "--continue-on-failure"]
    done = subprocess.run(
        [ST, "--config-file", "schemathesis.toml", "run", documented.document, *options],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    assert "Tested: 42" in done.stdout
