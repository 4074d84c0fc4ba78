"""Mount the compatible wires under `/compat/NAME`, and one of them at the root if the configuration says so."""

from collections.abc import Mapping

from fastapi import APIRouter, FastAPI

from assay_service.api.compat import aws, chat, cohere, jina, llamafactory, nemo_gym, openrlhf, sglang, slime, tei, vllm
from assay_service.api.compat.wire import Wire
from assay_service.compat_settings import CompatSettings

# Every wire with its routes; a new wire is one module and one line here.
WIRES: Mapping[Wire, APIRouter] = {
    module.WIRE: module.router
    for module in (aws, chat, cohere, jina, llamafactory, nemo_gym, openrlhf, sglang, slime, tei, vllm)
}


def find_wire(path: str) -> Wire | None:
    """Return the wire to whose part of the service a path belongs, whether or not the path exists; None for no wire."""
    return next((wire for wire in WIRES if path.startswith(f"/compat/{wire.name}/")), None)


def mount_wires(app: FastAPI, settings: CompatSettings) -> None:
    """Add the routes of all wires to an application."""
    for wire, router in WIRES.items():
        app.include_router(router, prefix=f"/compat/{wire.name}")
        if wire.name == settings.root:
            app.include_router(router, include_in_schema=False)
