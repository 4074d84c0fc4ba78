"""What all compatible wires share: settings, refused items, overload, the table in the docs."""

from pathlib import Path

import httpx

from assay_service.api.compat.mount import WIRES
from tests.compat.conftest import Serve

PAGE = Path(__file__).parents[2] / "docs" / "compat.md"


def test_every_path_of_every_wire_is_in_the_table() -> None:
    rows = {line.split("`")[1]: line for line in PAGE.read_text().splitlines() if line.startswith("| `")}
    assert sorted(rows) == sorted(wire.name for wire in WIRES)
    for wire, router in WIRES.items():
        assert wire.activation in rows[wire.name]
        assert str(wire.overload_status) in rows[wire.name]
        for route in router.routes:
            assert route.path in rows[wire.name]  # type: ignore[attr-defined]


def test_a_wire_at_the_root_answers_there_as_well(serve: Serve) -> None:
    url = serve(root="openrlhf").url
    for path in ("/get_reward", "/compat/openrlhf/get_reward"):
        answer = httpx.post(f"{url}{path}", json={"query": []})
        assert answer.status_code == 200
        assert answer.json() == {"rewards": [], "extra_logs": {}}
