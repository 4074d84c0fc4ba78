"""Find the body of every path of a compatible wire, for the tables of the docs."""

import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass

from assay_service.api.compat.mount import WIRES
from assay_service.api.compat.wire import ANY, Wire, WireBody


@dataclass(frozen=True)
class WirePath:
    """One path of a wire that reads a body, and the class of that body."""

    wire: Wire
    path: str
    body: type[WireBody]


def list_paths() -> list[WirePath]:
    """All paths that the docs name; `/ng-rollout/{rollout_id}` is only a prefix."""
    return [
        WirePath(wire, route.path, body)  # type: ignore[attr-defined]
        for wire, router in WIRES.items()
        for route in router.routes
        if "{" not in route.path  # type: ignore[attr-defined]
        for hint in typing.get_type_hints(route.endpoint).values()  # type: ignore[attr-defined]
        for body in find_bodies(hint)
    ]


def find_bodies(hint: object) -> Iterator[type[WireBody]]:
    """Yield the body that a parameter is, or a list of which it is."""
    if isinstance(hint, type) and issubclass(hint, WireBody):
        yield hint
    for part in typing.get_args(hint):
        yield from find_bodies(part)


def build_fields_table() -> list[str]:
    """The rows of docs/compat-fields.md: fields that are accepted and not read, with their paths and values."""
    paths = list_paths()
    accepted: dict[tuple[str, str, str], list[str]] = {}
    for one in paths:
        for name, harmless in one.body.ignored.items():
            if name not in one.body.model_fields:
                accepted.setdefault((one.wire.name, name, show_values(harmless)), []).append(one.path)
    rows = []
    for (wire, name, values), found in accepted.items():
        every = sorted(one.path for one in paths if one.wire.name == wire)
        where = "all" if sorted(found) == every else ", ".join(f"`{path}`" for path in sorted(found))
        rows.append(f"| `{wire}` | {where} | `{name}` | {values} |")
    return sorted(rows, key=lambda row: (row.split("|")[1], row.split("|")[3], row))


def show_values(harmless: object) -> str:
    if harmless is ANY:
        return "any"
    assert isinstance(harmless, tuple)
    return ", ".join(["null", *(f"`{json.dumps(value)}`" for value in harmless)])
