"""What all compatible wires share: settings, refused items, overload, the table in the docs."""

import base64
import struct
from collections.abc import Iterable
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from starlette.routing import BaseRoute, Route

from assay_service.api.compat.mount import WIRES
from assay_service.compat_settings import NATIVE_PATHS, CompatSettings
from tests.compat.conftest import Serve
from tests.compat.test_every_wire import IGNORING
from tests.compat.wire_bodies import build_fields_table

PAGE = Path(__file__).parents[2] / "docs" / "compat.md"
FIELDS = PAGE.with_name("compat-fields.md")


def test_every_path_of_every_wire_is_in_the_table() -> None:
    rows = {line.split("`")[1]: line for line in PAGE.read_text().splitlines() if line.startswith("| `")}
    assert sorted(rows) == sorted(wire.name for wire in WIRES)
    for wire, router in WIRES.items():
        assert wire.activation in rows[wire.name]
        assert str(wire.overload_status) in rows[wire.name]
        for route in router.routes:
            assert route.path in rows[wire.name]  # type: ignore[attr-defined]


def test_the_table_says_which_wires_ignore_unknown_fields() -> None:
    rows = [line.split("|") for line in PAGE.read_text().split("\n## ")[0].splitlines() if line.startswith("| `")]
    assert {cells[1].strip(" `"): cells[-2].split()[0].strip(",") for cells in rows} == {
        wire.name: "ignored" if wire.name in IGNORING else "refused" for wire in WIRES
    }


def test_a_wire_at_the_root_answers_there_as_well(serve: Serve) -> None:
    url = serve(root="openrlhf").url
    for path in ("/get_reward", "/compat/openrlhf/get_reward"):
        answer = httpx.post(f"{url}{path}", json={"query": []})
        assert answer.status_code == 200
        assert answer.json() == {"rewards": [], "extra_logs": {}}


def list_paths(routes: Iterable[BaseRoute]) -> set[str]:
    return {f"{method} {r.path}" for r in routes if isinstance(r, Route) and r.methods for method in r.methods}


def test_the_wires_that_cannot_be_at_the_root_are_those_with_a_path_of_assays_own(serve: Serve) -> None:
    native = {path for path in list_paths(serve().app.routes) if "/compat/" not in path}
    clashes = {wire.name: tuple(sorted(native & list_paths(router.routes))) for wire, router in WIRES.items()}
    assert {name: paths for name, paths in clashes.items() if paths} == NATIVE_PATHS


def test_every_wire_has_a_row_that_says_what_is_proved() -> None:
    proved = PAGE.read_text().split("\n## What is proved\n")[1]
    titles = [line.split("|")[1].strip() for line in proved.splitlines() if line.startswith("| ")]
    assert sorted(titles[1:], key=str.lower) == sorted((wire.title for wire in WIRES), key=str.lower)


def test_the_page_of_fields_is_that_of_the_code() -> None:
    rows = [line for line in FIELDS.read_text().splitlines() if line.startswith("| `")]
    assert rows == build_fields_table()


@pytest.mark.parametrize(("floor", "is_valid"), [(-1e30, True), (3.5e38, False), (-1e39, False), (1e308, False)])
def test_a_floor_fits_into_every_wires_numbers(serve: Serve, floor: float, is_valid: bool) -> None:
    """SGLang's embeddings hold 32 bits; a larger floor would be an internal error where it is needed."""
    wires = {"sglang": {"on_item_error": {"floor": floor}}}
    if not is_valid:
        with pytest.raises(ValidationError, match="floor"):
            CompatSettings.model_validate({"wires": wires})
        return
    body = {"input": "no conversation", "encoding_format": "base64"}
    answer = httpx.post(f"{serve(wires=wires).url}/compat/sglang/v1/embeddings", json=body).json()
    (read,) = struct.unpack("<f", base64.b64decode(answer["data"][0]["embedding"]))
    assert read == pytest.approx(floor)
