"""Build the FastAPI application: routes, error handlers, probes, start and stop."""

import asyncio
import platform
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from assay_service import loader
from assay_service.api import schemas
from assay_service.api.authentication import Authentication
from assay_service.api.compat.mount import find_wire, mount_wires
from assay_service.api.compat.wire import build_error_response
from assay_service.api.described_app import DescribedApp
from assay_service.api.guard import BodyTooLarge, Guard
from assay_service.api.key_store import KeyStore
from assay_service.api.playground import mount_playground
from assay_service.api.refusals import refuse
from assay_service.api.routes import router
from assay_service.api.scorer import Scorer
from assay_service.api.token_ids import collect_readers
from assay_service.engine.admission import QueueLimits, Terms
from assay_service.engine.engine import Engine
from assay_service.errors import AssayError, NotReady
from assay_service.metrics import Metrics
from assay_service.policies import load_policies
from assay_service.registry import Registry
from assay_service.request_id import HEADER
from assay_service.resolve import ResolvedSignal, resolve
from assay_service.scoring.item import PROBE
from assay_service.settings import Limits, Settings

# /ready trusts a forward pass that is at most this old. Otherwise it runs one, within the time limit.
RECENT_FORWARD_S = 30.0
PROBE_TIMEOUT_S = 10.0
# A caller of its own has its turn at once, whatever the others have queued; nobody else can have an empty name.
PROBE_TERMS = Terms(caller="", exempt=True)


def create_app(
    settings: Settings,
    *,
    resolved: Mapping[str, ResolvedSignal] | None = None,
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Load and check the models of a configuration, and return the application that serves them.

    `create_app(read_settings(EMBEDDED))` serves the embedded models.

    Args:
        settings: the signals, blends and limits to serve.
        resolved: the resolved signals of `settings`; None resolves them first.
        on_failure: callback, called once when a device has failed; only a new process can serve again then.

    Raises:
        StartError: the configuration or a checkpoint is wrong.
    """
    # The command resolves signals before torch is imported, so that a wrong configuration is reported at once.
    signals = resolve(settings) if resolved is None else resolved
    keys = None if settings.keys is None else KeyStore(settings.find_path(settings.keys))
    policies = load_policies(settings)  # before the models, which take longer
    registry = loader.load_resolved(settings, signals)
    # One for each application, so that tests can run several in a process.
    metrics = Metrics()
    metrics.build.info(_describe_build(registry))
    engine = _build_engine(registry, settings.limits, metrics, on_failure)
    scorer = Scorer(registry, engine, metrics, settings.limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        watching = None if keys is None else asyncio.create_task(keys.watch())
        yield
        if watching is not None:
            watching.cancel()
        # `stop` finishes the waiting jobs first. Joining the worker must not block the event loop that answers them.
        await asyncio.to_thread(engine.stop)
        scorer.close()

    app = DescribedApp(title="Assay", version=version("assay-rewards"), lifespan=lifespan)
    app.state.scorer, app.state.metrics, app.state.settings, app.state.keys = scorer, metrics, settings, keys
    app.state.policies = {wire: reader.transcript for wire, reader in policies.items()}
    # A declared policy reads ids before a signal that has the same tokenizer with another template.
    own = [signal.token_reader for signal in registry.signals.values()]
    app.state.token_readers = collect_readers([*dict.fromkeys(policies.values()), *own])
    # State first: the handlers of wires read it for every request.
    _add_endpoints(app, settings)
    if keys is not None:
        app.add_middleware(Authentication, keys=keys, answer=_answer_error)
    # Last, so that it surrounds the other: refused requests have an id and are counted, too.
    app.add_middleware(Guard, max_body_bytes=settings.limits.max_body_bytes, metrics=metrics)
    # `Exception`, too: a crash must have the wire's form and a request id, like every error.
    for kind in (RequestValidationError, HTTPException, AssayError, BodyTooLarge, Exception):
        app.add_exception_handler(kind, _answer_error)
    return app


def _describe_build(registry: Registry) -> dict[str, str]:
    """Return the labels of the metric `assay_build`, by which a dashboard shows when a score could change."""
    return {
        "version": version("assay-rewards"),
        "fingerprint": registry.fingerprint(),
        "torch": version("torch"),
        "python": platform.python_version(),
    }


def _build_engine(registry: Registry, limits: Limits, metrics: Metrics, on_failure: Callable[[], None]) -> Engine:
    """Return the engine of all models, whose worker has not started; `on_failure` is that of `create_app`."""
    return Engine(
        {trunk.name: trunk for trunk in registry.trunks.values()},
        registry.identities,
        max_batch_tokens=limits.max_batch_tokens,
        limits=QueueLimits(limits.max_queue_wait_s, limits.max_queue_tokens, limits.max_queue_items),
        cache_bytes=limits.cache_bytes,
        metrics=metrics,
        on_failure=on_failure,
    )


def _add_endpoints(app: FastAPI, settings: Settings) -> None:
    """Add the native endpoints, the compatible wires, the page and the probes."""
    app.include_router(router)
    mount_wires(app, settings.compat)
    if settings.playground:
        mount_playground(app)
    app.add_api_route("/health", health, methods=["GET"], responses=schemas.ERROR_RESPONSES)
    app.add_api_route("/ready", ready, methods=["GET"], responses=schemas.ERROR_RESPONSES)


async def health(request: Request) -> dict[str, str]:
    """Report that the process can still score, or 503 where only a restart helps.

    Raises:
        NotReady: the worker has ended, or its device has failed.
    """
    if not request.app.state.scorer.engine.alive:
        # 503 makes an orchestrator restart the process, which alone helps here.
        raise NotReady("the worker has ended or its device has failed; restart the service")
    return {"status": "ok"}


async def ready(request: Request) -> dict[str, Any]:
    """Report that requests can be sent here: a real forward pass succeeded recently, or succeeds now.

    Raises:
        NotReady: the service is shutting down, or a forward pass failed or took too long.
    """
    scorer: Scorer = request.app.state.scorer
    if scorer.engine.stopping or scorer.engine.failed:
        raise NotReady("the service is shutting down")
    stale = [name for name in scorer.registry.signals if scorer.engine.get_age_of_success_s(name) > RECENT_FORWARD_S]
    if stale:
        try:
            # Fresh: a cached logit would say nothing about the device.
            probing = scorer.score([PROBE], stale, PROBE_TERMS, fresh=True)
            results = await asyncio.wait_for(probing, PROBE_TIMEOUT_S)
        except TimeoutError:
            raise NotReady(f"no forward pass of {', '.join(stale)} finished within {PROBE_TIMEOUT_S:.0f} s") from None
        if isinstance(results[0], AssayError):
            raise NotReady(f"the last forward pass failed: {results[0].code}")
    return {"status": "ready"}


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an exception in the form of the native endpoints, or of the wire whose path it is."""
    refusal = refuse(request, error)
    # Without a route of the wire, the path is unknown or has another method.
    if (wire := getattr(request.state, "wire", None) or find_wire(request.url.path)) is not None:
        return build_error_response(request, wire, refusal)
    detail = schemas.RequestError(
        code=refusal.code,
        message=refusal.message,
        param=refusal.param,
        request_id=request.state.request_id,
        retryable=refusal.retryable,
    )
    # The guard sets this header too, but the answer to a crash is sent outside the guard.
    headers = {HEADER: request.state.request_id, **refusal.headers}
    return JSONResponse(schemas.ErrorBody(error=detail).model_dump(), status_code=refusal.status, headers=headers)
