"""Build the FastAPI application: routes, error handlers, probes, start and stop."""

import asyncio
import time
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
from assay_service.api.admin_routes import router as admin_router
from assay_service.api.administration import Administration
from assay_service.api.answer_parts import ProvenanceWriter
from assay_service.api.authentication import Authentication
from assay_service.api.compat.mount import find_wire, mount_wires
from assay_service.api.compat.wire import build_error_response
from assay_service.api.described_app import DescribedApp
from assay_service.api.drain import Drain
from assay_service.api.guard import BodyTooLarge, Guard
from assay_service.api.key_store import KeyStore
from assay_service.api.playground import mount_playground
from assay_service.api.refusals import refuse
from assay_service.api.routes import router
from assay_service.api.scorer import Scorer
from assay_service.api.served_metrics import show_signals
from assay_service.engine.admission import QueueLimits, Terms
from assay_service.engine.engine import Engine
from assay_service.errors import AssayError, NotReady
from assay_service.policies import load_policies
from assay_service.request_id import HEADER
from assay_service.resolve import ResolvedSignal, resolve
from assay_service.scoring.item import PROBE
from assay_service.settings import Settings
from assay_service.telemetry.metrics import Metrics
from assay_service.telemetry.sample_log import SampleLog
from assay_service.telemetry.tracing import Tracer

# /ready trusts a forward pass that is at most this old. Otherwise it runs one, within the time limit.
RECENT_FORWARD_S = 30.0
PROBE_TIMEOUT_S = 10.0
# The worker's time to end after a drain. Only a forward pass that does not end needs more.
END_S = 1.0
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
    tracer = None if settings.tracing is None else Tracer(settings.tracing)
    policies = load_policies(settings)  # before the models, which take longer
    registry = loader.load_resolved(settings, signals)
    metrics = Metrics()
    show_signals(metrics, registry)
    engine = _build_engine(settings, metrics, on_failure)
    drain = Drain(settings.lifecycle.drain_s)
    scorer = Scorer(registry, engine, metrics, settings.limits)

    app = DescribedApp(title="Assay", version=version("assay-rewards"), lifespan=_run_engine)
    app.state.scorer, app.state.metrics, app.state.settings, app.state.keys = scorer, metrics, settings, keys
    app.state.drain, app.state.tracer, app.state.samples = drain, tracer, None
    app.state.provenance = ProvenanceWriter()
    if settings.samples is not None:
        app.state.samples = SampleLog(settings.samples, settings.find_path(settings.samples.path), metrics)
    app.state.policies = {wire: reader.transcript for wire, reader in policies.items()}
    app.state.policy_readers = list(dict.fromkeys(policies.values()))
    app.state.administration = Administration(app.state)
    # State first: the handlers of wires read it for every request.
    _add_endpoints(app, settings)
    if keys is not None:
        app.add_middleware(Authentication, keys=keys, answer=_answer_error)
    # Last, so that it surrounds the other: refused requests have an id and are counted, too.
    app.add_middleware(
        Guard,
        max_body_bytes=settings.limits.max_body_bytes,
        metrics=metrics,
        tracer=tracer,
        drain=drain,
        answer=_answer_error,
    )
    # `Exception`, too: a crash must have the wire's form and a request id, like every error.
    for kind in (RequestValidationError, HTTPException, AssayError, BodyTooLarge, Exception):
        app.add_exception_handler(kind, _answer_error)
    return app


@asynccontextmanager
async def _run_engine(app: FastAPI) -> AsyncIterator[None]:
    """Run the engine and watch the key file while the application serves, and close what it writes to at the end."""
    state = app.state
    state.scorer.engine.start()
    watching = None if state.keys is None else asyncio.create_task(state.keys.watch())
    yield
    if watching is not None:
        watching.cancel()
    # `stop` finishes the waiting jobs first. Joining the worker must not block the event loop that answers them.
    # A drain has finished or dropped them already, and a forward pass that stalls must not keep the process.
    await asyncio.to_thread(state.scorer.engine.stop, None if state.drain.reason is None else END_S)
    state.scorer.close()
    for sink in (state.samples, state.tracer):
        if sink is not None:
            await asyncio.to_thread(sink.close)


def _build_engine(settings: Settings, metrics: Metrics, on_failure: Callable[[], None]) -> Engine:
    """Return the engine, whose worker has not started; `on_failure` is that of `create_app`."""
    limits = settings.limits
    return Engine(
        max_batch_tokens=limits.max_batch_tokens,
        limits=QueueLimits(limits.max_queue_wait_s, limits.max_queue_tokens, limits.max_queue_items),
        cache_bytes=limits.cache_bytes,
        max_forward_s=settings.lifecycle.max_forward_s,
        metrics=metrics,
        on_failure=on_failure,
    )


def _add_endpoints(app: FastAPI, settings: Settings) -> None:
    """Add the native endpoints, the compatible wires, the page and the probes."""
    app.include_router(router)
    app.include_router(admin_router)
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
        NotReady: the service is shutting down, its work stalls, or a forward pass failed or took too long.
    """
    scorer: Scorer = request.app.state.scorer
    engine, drain = scorer.engine, request.app.state.drain
    if engine.failed:
        raise NotReady("the device has failed, and the service ends")
    if drain.reason is not None or engine.stopping:
        raise NotReady(drain.reason or "the service is shutting down")
    # First, because a probe would wait behind the pass that stalls.
    if (stall := engine.explain_stall()) is not None:
        raise NotReady(stall)
    now_s = time.monotonic()
    stale = [n for n in scorer.registry.signals if engine.progress.get_age_of_success_s(n, now_s) > RECENT_FORWARD_S]
    if stale:
        try:
            # Fresh: a cached logit would say nothing about the device.
            probing = scorer.score([PROBE], stale, PROBE_TERMS, request.state.timings, fresh=True)
            results = await asyncio.wait_for(probing, PROBE_TIMEOUT_S)
        except TimeoutError:
            if engine.progress.is_computing and engine.explain_stall() is None:
                return {"status": "ready"}  # the probe waits behind a long pass, whose limit is another one
            raise NotReady(f"no forward pass of {', '.join(stale)} finished within {PROBE_TIMEOUT_S:.0f} s") from None
        if isinstance(results[0], AssayError):
            raise NotReady(f"the last forward pass failed: {results[0].code}")
    return {"status": "ready"}


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an exception in the form of the native endpoints, or of the wire whose path it is."""
    refusal = refuse(request, error)
    if refusal.code != "client_gone":  # nobody was refused, and the guard counts them
        request.app.state.metrics.refused.labels(refusal.code).inc()
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
