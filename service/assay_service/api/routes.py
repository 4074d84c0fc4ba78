"""One function per endpoint. All state is in `request.app.state`: `scorer`, `metrics`, `settings`."""

import copy
import time
import uuid
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Depends, Request, Response

from assay_service.api import answers, schemas
from assay_service.api.body import UniqueKeysRoute
from assay_service.api.guard import while_connected
from assay_service.api.messages import items_of, items_of_prompt
from assay_service.api.scorer import ItemScore, Scorer
from assay_service.errors import AssayError, ServingError
from assay_service.scoring.blend import probability, ranked

API_VERSION = "1"

router = APIRouter(responses=schemas.ERROR_RESPONSES, route_class=UniqueKeysRoute)


def _scorer(request: Request) -> Scorer:
    scorer: Scorer = request.app.state.scorer
    return scorer


Scoring = Annotated[Scorer, Depends(_scorer)]


@router.post("/v1/score", response_model=answers.ScoreAnswer, response_model_exclude_unset=True)
async def score(body: schemas.ScoreRequest, request: Request, scorer: Scoring) -> answers.ScoreAnswer:
    """Scores items; an item that cannot be scored has an error in its place."""
    _check_count(request, len(body.items), "items")
    blend = scorer.registry.blend(body.model, body.weights)
    items = items_of(body.items)
    scores = await while_connected(request, scorer.score(items, list(blend.weights), body.truncation))
    rows: list[answers.ScoredRow | answers.FailedRow] = []
    for index, (item, result) in enumerate(zip(body.items, scores, strict=True)):
        total = scorer.blended(blend, result)
        if isinstance(total, AssayError) or isinstance(result, AssayError):
            rows.append(_failed(index, item.id, total))
        else:
            signals = {name: scorer.value(name, result) for name in result.logits}
            rows.append(answers.ScoredRow(index=index, score=total, signals=signals, **_id(item.id)))
    return answers.ScoreAnswer(
        id=f"score-{uuid.uuid4().hex}",
        object="list",
        created=int(time.time()),
        model=blend.name,
        data=rows,
        provenance=scorer.provenance(blend.weights, blend),
    )


@router.post("/v1/rank", response_model=answers.RankAnswer, response_model_exclude_unset=True)
async def rank(body: schemas.RankRequest, request: Request, scorer: Scoring) -> answers.RankAnswer:
    """Ranks the completions of one prompt; margins are those of the whole ranking, also where `top_n` cuts it."""
    _check_count(request, len(body.completions), "completions")
    blend = scorer.registry.blend(body.model, body.weights)
    prompt, field = (body.messages or [], "messages") if body.prompt is None else (body.prompt, "prompt")
    entries = [schemas.RankCompletion(completion=c) if isinstance(c, str) else c for c in body.completions]
    items = items_of_prompt(prompt, entries, field)
    scores = await while_connected(request, scorer.score(items, list(blend.weights)))
    totals = [scorer.blended(blend, result) for result in scores]
    places = ranked({i: total for i, total in enumerate(totals) if not isinstance(total, AssayError)})
    return answers.RankAnswer(
        id=f"rank-{uuid.uuid4().hex}",
        object="rank",
        created=int(time.time()),
        model=blend.name,
        results=[
            answers.RankedRow(
                index=place.index,
                score=_number(totals[place.index]),
                signals={n: scorer.value(n, _scored(scores[place.index])) for n in blend.weights},
                margin=place.margin,
                **_id(entries[place.index].id),
            )
            for place in places[: body.top_n]
        ],
        errors=[_failed(i, entries[i].id, total) for i, total in enumerate(totals) if isinstance(total, AssayError)],
        provenance=scorer.provenance(blend.weights, blend),
    )


@router.post("/v1/compare", response_model=answers.CompareAnswer, response_model_exclude_unset=True)
async def compare(body: schemas.CompareRequest, request: Request, scorer: Scoring) -> answers.CompareAnswer:
    """Compare two completions by every signal and every blend, or by one of them."""
    registry = scorer.registry
    blend = None if body.model is None else registry.blend(body.model, None)
    names = list(registry.signals if blend is None else blend.weights)
    sides = [schemas.RankCompletion(completion=text) for text in (body.a, body.b)]
    items = items_of_prompt(body.prompt, sides, "prompt")
    results = await while_connected(request, scorer.score(items, names))
    for param, result in zip(("a", "b"), results, strict=True):
        if isinstance(result, AssayError):
            error = copy.copy(result)  # other requests may hold the same one
            error.param = error.param if error.code == "invalid_message" else param
            raise error
    a, b = (_scored(result) for result in results)
    signals = {}
    for name in names:
        margin = a.logits[name] - b.logits[name]
        chance = {"prob_a": probability(margin)} if registry.signals[name].kind == "preference" else {}
        signals[name] = answers.ComparedSignal(
            margin=margin, a=scorer.value(name, a), b=scorer.value(name, b), **chance
        )
    return answers.CompareAnswer(
        id=f"compare-{uuid.uuid4().hex}",
        object="comparison",
        created=int(time.time()),
        signals=signals,
        blends={
            name: answers.ComparedBlend(margin=_number(scorer.blended(rule, a)) - _number(scorer.blended(rule, b)))
            for name, rule in registry.blends.items()
            if body.model in (None, name)
        },
        provenance=scorer.provenance(names, blend),
    )


@router.post("/v1/render", response_model=answers.RenderAnswer, response_model_exclude_unset=True)
async def render(body: schemas.RenderRequest, request: Request, scorer: Scoring) -> answers.RenderAnswer:
    """Show what exactly every signal would score, or those of one signal or blend."""
    _check_count(request, len(body.items), "items")
    registry = scorer.registry
    signals = list(registry.signals if body.model is None else registry.blend(body.model, None).weights)
    rows: list[answers.RenderedRow | answers.FailedRow] = []
    items = items_of(body.items)
    rendered = await while_connected(request, scorer.render(items, signals, body.truncation))
    for index, (item, result) in enumerate(zip(body.items, rendered, strict=True)):
        if isinstance(result, AssayError):
            rows.append(_failed(index, item.id, result))
            continue
        shown = {name: scorer.shown(name, rendering) for name, rendering in result.items()}
        rows.append(answers.RenderedRow(index=index, signals=shown, **_id(item.id)))
    return answers.RenderAnswer(object="list", data=rows)


@router.get("/v1/models", response_model=answers.ModelsAnswer, response_model_exclude_unset=True)
async def models(scorer: Scoring) -> answers.ModelsAnswer:
    """Lists the names that requests may use."""
    registry = scorer.registry
    signals = [
        answers.ModelInfo(id=name, object="model", kind=signal.kind, default=name == registry.default)
        for name, signal in registry.signals.items()
    ]
    blends = [
        answers.ModelInfo(
            id=name,
            object="model",
            kind="blend",
            default=name == registry.default,
            weights=dict(blend.weights),
            standardise=blend.standardise,
        )
        for name, blend in registry.blends.items()
    ]
    return answers.ModelsAnswer(object="list", data=[*signals, *blends])


@router.get("/info")
async def info(request: Request, scorer: Scoring) -> dict[str, Any]:
    """Versions, limits and numerics, and how every signal renders and reads."""
    registry = scorer.registry
    return {
        "api_version": API_VERSION,
        "version": version("assay-rewards"),
        "default": registry.default,
        "fingerprint": registry.fingerprint(),
        "limits": request.app.state.settings.limits.model_dump(),
        "numerics": {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "invariant": all(registry.invariant.values()),
        },
        "signals": {
            name: {
                "kind": signal.kind,
                "device": str(signal.model.device),
                "dtype": signal.provenance.dtype,
                "invariant": registry.invariant[name],
                "kernels": asdict(signal.model.kernels),
                "forward": "packed" if signal.model.architecture.packed else "one item at a time",
                "max_length": signal.renderer.rules.max_length,
                "score_position": signal.renderer.rules.score_position,
                "eos": signal.renderer.rules.eos,
                "unfinished": signal.renderer.rules.unfinished,
                "dropped_content": signal.renderer.rules.dropped_content,
                "control_tokens": signal.renderer.rules.control_tokens,
                "token_types": signal.renderer.rules.token_types,
                "mean": None if signal.moments is None else signal.moments.mean,
                "std": None if signal.moments is None else signal.moments.std,
            }
            for name, signal in registry.signals.items()
        },
    }


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(request.app.state.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _check_count(request: Request, count: int, param: str) -> None:
    request.state.items = count  # for the log
    most = request.app.state.settings.limits.max_items
    if count > most:
        raise ServingError(f"{count} {param}, at most {most} in one request", code="too_many_items", param=param)


def _failed(index: int, item_id: str | None, error: object) -> answers.FailedRow:
    assert isinstance(error, AssayError)
    detail = answers.ErrorDetail(code=error.code, message=error.message, param=error.param, retryable=error.retryable)
    return answers.FailedRow(index=index, error=detail, **_id(item_id))


def _id(item_id: str | None) -> dict[str, str]:
    """An id is echoed where one was sent, and absent where none was."""
    return {} if item_id is None else {"id": item_id}


def _number(total: float | AssayError) -> float:
    if isinstance(total, AssayError):
        raise total
    return total


def _scored(result: ItemScore | AssayError) -> ItemScore:
    assert not isinstance(result, AssayError)
    return result
