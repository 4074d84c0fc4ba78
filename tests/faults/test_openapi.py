"""schemathesis over the whole OpenAPI document of real processes, with and without API keys.

Bodies that fit the document and bodies that break it, every check, and seeds that are fixed.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from assay_service.keys import add_key
from tests.faults.service import Service, serve
from tests.service.conftest import tiny

__all__ = ["tiny"]

pytestmark = pytest.mark.slow

ST = Path(sys.executable).with_name("st")
# What a schema cannot say, such as a role that the template does not know, is refused by a documented body: 400 or 422
# in the form of the wire, 413 where a limit of the configuration is exceeded, 424 for TEI.
SETTINGS = """
[generation]
database = "none"

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404", "413", "422"]

[checks.negative_data_rejection]
expected-statuses = ["4xx"]
"""


@dataclass(frozen=True)
class Documented:
    """A process, and the options by which schemathesis has the right to ask it."""

    service: Service
    options: tuple[str, ...]


@pytest.fixture(scope="module")
def documented(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Documented]]:
    folder, config = tmp_path_factory.mktemp("openapi"), tiny["root"] / "service.yaml"
    key = add_key(folder / "keys.yaml", "all", ("score", "metrics", "admin"))
    with ExitStack() as stack:
        (plain,) = stack.enter_context(serve([config]))
        (guarded,) = stack.enter_context(serve([config], "--keys", str(folder / "keys.yaml")))
        header = ("--header", f"Authorization: Bearer {key}")
        yield {"without": Documented(plain, ()), "with": Documented(guarded, header)}
        assert (plain.find_crashes(), guarded.find_crashes()) == ([], [])


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("keys", ["without", "with"])
def test_every_answer_is_documented(documented: dict[str, Documented], keys: str, mode: str, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    asked = documented[keys]
    options = ["--checks", "all", "--mode", mode, "--seed", "1", "--max-examples", "5", "--no-shrink"]
    command = [ST, "--config-file", "schemathesis.toml", "run", f"{asked.service.url}/openapi.json", *options]
    done = subprocess.run(
        [*command, "--continue-on-failure", *asked.options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    assert "Tested: 40" in done.stdout
