"""Answer the endpoints that change a running service, which need a key with the scope `admin`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from assay_service.api import answers, schemas
from assay_service.api.administration import Administration
from assay_service.api.body import StrictJsonRoute
from assay_service.registry import Registry

router = APIRouter(prefix="/admin", tags=["admin"], responses=schemas.ADMIN_RESPONSES, route_class=StrictJsonRoute)


async def _get_administration(request: Request) -> Administration:
    administration: Administration = request.app.state.administration
    return administration


Administering = Annotated[Administration, Depends(_get_administration)]


@router.post("/signals", status_code=201)
async def add_signal(
    body: schemas.AddSignalRequest, request: Request, administration: Administering
) -> answers.SignalsAnswer:
    """Load a signal beside the running ones, prove it, and serve it; the answer comes when it is served."""
    return _answer(await administration.add(body.name, body.signal, _get_caller(request)))


@router.delete("/signals/{name}")
async def remove_signal(name: str, request: Request, administration: Administering) -> answers.SignalsAnswer:
    """Serve without a signal from now on; requests that run are finished with it."""
    return _answer(await administration.remove(name, _get_caller(request)))


def _get_caller(request: Request) -> str | None:
    return getattr(request.state, "caller", None)


def _answer(registry: Registry) -> answers.SignalsAnswer:
    return answers.SignalsAnswer(object="signals", signals=list(registry.signals), fingerprint=registry.fingerprint())
