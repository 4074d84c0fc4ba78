"""Build the FastAPI application: routes, error handlers, probes, start and stop."""

import asyncio
import logging
import platform
import re
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
from assay_service.api.body import TWICE
from assay_service.api.guard import BodyTooLarge, Guard
from assay_service.api.routes import router
from assay_service.api.scorer import Scorer
from assay_service.engine.engine import Engine
from assay_service.errors import AssayError, ContentError, NotReady, Overloaded, ServingError
from assay_service.metrics import Metrics
from assay_service.request_id import HEADER
from assay_service.resolve import ResolvedSignal
from assay_service.scoring.item import PROBE
from assay_service.settings import Settings
from assay_service.validation import explain, format_key

# /ready trusts a forward pass that is at most this old. Otherwise it runs one, within the time limit.
RECENT_FORWARD_S = 30.0
PROBE_TIMEOUT_S = 10.0

_NOT_JSON = "the body is not valid JSON"
_PLAIN = re.compile(r"^[A-Za-z0-9._-]{1,64}$")

_log = logging.getLogger("assay")


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
    registry = loader.load(settings) if resolved is None else loader.load_resolved(settings, resolved)
    metrics = Metrics()
    metrics.build.info(
        {
            "version": version("assay-rewards"),
            "fingerprint": registry.fingerprint(),
            "torch": version("torch"),
            "python": platform.python_version(),
        }
    )
    engine = Engine(
        {name: signal.model for name, signal in registry.signals.items()},
        registry.identities,
        max_batch_tokens=settings.limits.max_batch_tokens,
        max_queue_tokens=settings.limits.max_queue_tokens,
        cache_bytes=settings.limits.cache_bytes,
        metrics=metrics,
        on_failure=on_failure,
    )
    scorer = Scorer(registry, engine, metrics, settings.limits.max_item_chars)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        # `stop` finishes the waiting jobs first. Joining the worker must not block the event loop that answers them.
        await asyncio.to_thread(engine.stop)
        scorer.close()

    app = FastAPI(title="Assay", version=version("assay-rewards"), lifespan=lifespan)
    app.state.scorer, app.state.metrics, app.state.settings = scorer, metrics, settings
    app.include_router(router)
    app.add_api_route("/health", health, methods=["GET"], responses=schemas.ERROR_RESPONSES)
    app.add_api_route("/ready", ready, methods=["GET"], responses=schemas.ERROR_RESPONSES)
    app.add_middleware(Guard, max_body_bytes=settings.limits.max_body_bytes, metrics=metrics)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(AssayError, _answer_assay_error)
    app.add_exception_handler(BodyTooLarge, _answer_too_large)
    app.add_exception_handler(Exception, _answer_crash)
    return app


async def health(request: Request) -> dict[str, str]:
    """Report that the process can still score, or 503 where only a restart helps.

    Raises:
        NotReady: the worker has ended, or its device has failed.
    """
    if not request.app.state.scorer.engine.alive:
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
            results = await asyncio.wait_for(scorer.score([PROBE], stale, fresh=True), PROBE_TIMEOUT_S)
        except (TimeoutError, Overloaded):  # either way the worker does not get through the queue
            raise NotReady(f"no forward pass of {', '.join(stale)} finished within {PROBE_TIMEOUT_S:.0f} s") from None
        if isinstance(results[0], AssayError):
            raise NotReady(f"the last forward pass failed: {results[0].code}")
    return {"status": "ready"}


def _build_error(
    request: Request, status: int, *, code: str, message: str, param: str | None, retryable: bool
) -> JSONResponse:
    detail = schemas.RequestError(
        code=code, message=message, param=param, request_id=request.state.request_id, retryable=retryable
    )
    # The guard sets this header too, but the answer to a crash is sent outside the guard.
    headers = {HEADER: request.state.request_id}
    return JSONResponse(schemas.ErrorBody(error=detail).model_dump(), status_code=status, headers=headers)


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer a body that breaks the schema: name the field and the rule, and never echo the input."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]  # the error body has only one `param`
    param = _format_param(first["loc"])
    message = explain(first)
    if first["type"] == "json_invalid":
        message = TWICE if first["ctx"]["error"] == TWICE else _NOT_JSON
    if first["loc"] == ("body",) and not _has_json_type(request):
        message = "the body was not read as JSON: send the header `content-type: application/json`"
    return _build_error(request, 422, code="invalid_request", message=message, param=param, retryable=False)


async def _answer_assay_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an error that Assay raised on purpose, with the status of its code."""
    assert isinstance(error, AssayError)
    # Content errors get here only from /v1/compare, which has no errors of single items.
    status = schemas.CONTENT_STATUS if isinstance(error, ContentError) else schemas.STATUS[error.code]
    response = _build_error(
        request, status, code=error.code, message=error.message, param=error.param, retryable=error.retryable
    )
    if isinstance(error, Overloaded):
        response.headers["Retry-After"] = f"{error.retry_after_s:.0f}"
    return response


async def _answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer Starlette's own errors (404, 405, a body that is not UTF-8) in the form of Assay's."""
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI's status for bodies that are not UTF-8, too deep, or hold huge numbers
        return _build_error(request, 422, code="invalid_request", message=_NOT_JSON, param=None, retryable=False)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http")
    return _build_error(request, error.status_code, code=code, message=str(error.detail), param=None, retryable=False)


async def _answer_too_large(request: Request, error: Exception) -> JSONResponse:
    """Answer a body that the guard stopped reading."""
    most = request.app.state.settings.limits.max_body_bytes
    message = f"the body has more than {most} bytes (max_body_bytes); split the request into several"
    return await _answer_assay_error(request, ServingError(message, code="body_too_large"))


async def _answer_crash(request: Request, error: Exception) -> JSONResponse:
    """Answer an exception that no code expected: details go to the log, never to the client."""
    _log.exception("request %s failed", request.state.request_id, exc_info=error)
    return _build_error(
        request,
        500,
        code="internal",
        message="internal error; the service's log has the details",
        param=None,
        retryable=True,
    )


def _format_param(loc: tuple[Any, ...]) -> str | None:
    """Format a pydantic location as a path: ("body", "items", 3, "prompt") is items[3].prompt.

    The path has neither union tags nor names with unusual characters, which would echo the input.
    """
    return format_key(loc[1:], lambda part: part not in schemas.UNION_TAGS and bool(_PLAIN.match(part))) or None


def _has_json_type(request: Request) -> bool:
    """Return True if the request's `content-type` is JSON; curl's `-d` alone sends the type of a form."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))
