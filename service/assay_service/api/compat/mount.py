"""Mount the compatible wires under `/compat/NAME`, and one of them at the root if the configuration says so."""

from collections.abc import Mapping

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from assay_service.api.compat import aws, chat, cohere, jina, llamafactory, nemo_gym, openrlhf, sglang, slime, tei, vllm
from assay_service.api.compat.wire import Wire
from assay_service.compat_settings import CompatSettings
from assay_service.errors import StartError

# Every wire with its routes; a new wire is one module and one line here.
WIRES: Mapping[Wire, APIRouter] = {
    module.WIRE: module.router
    for module in (aws, chat, cohere, jina, llamafactory, nemo_gym, openrlhf, sglang, slime, tei, vllm)
}


def find_wire(path: str) -> Wire | None:
    """Return the wire to whose part of the service a path belongs, whether or not the path exists; None for no wire."""
    return next((wire for wire in WIRES if path.startswith(f"/compat/{wire.name}/")), None)


def mount_wires(app: FastAPI, settings: CompatSettings) -> None:
    """Add the routes of all wires to an application that has the native routes already.

    Raises:
        StartError: the wire at the root has a path that Assay itself serves.
    """
    for wire, router in WIRES.items():
        app.include_router(router, prefix=f"/compat/{wire.name}")
        if wire.name == settings.root:
            _check_free(app, wire, router)
            app.include_router(router, include_in_schema=False)


def _check_free(app: FastAPI, wire: Wire, router: APIRouter) -> None:
    native = {(route.path, method) for route in _list_routes(app.router) for method in route.methods}
    clashes = [
        f"{method} {route.path}"
        for route in _list_routes(router)
        for method in sorted(route.methods)
        if (route.path, method) in native
    ]
    if clashes:
        raise StartError(
            f"compat.root: {wire.name} cannot be served at the root, because Assay itself serves "
            f"{', '.join(clashes)}; use the base URL http://HOST:PORT/compat/{wire.name}"
        )


def _list_routes(router: APIRouter) -> list[APIRoute]:
    return [route for route in router.routes if isinstance(route, APIRoute)]
