"""Answer each endpoint by one function.

All state is in `request.app.state`: `scorer`, `metrics` and `settings`.
"""

import asyncio
import copy
import time
import uuid
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Depends, Request, Response

from assay_service.api import answer_parts, answers, render_answers, schemas
from assay_service.api.body import StrictJsonRoute, answer_plain
from assay_service.api.guard import run_while_connected
from assay_service.api.messages import build_completion_items
from assay_service.api.scored_answers import answer_rank, answer_score, begin_plain_rank, begin_plain_score
from assay_service.api.scorer import ItemScore, Scorer
from assay_service.api.scoring import ScoredItem, check_completions, check_count, score_result
from assay_service.api.terms import read_terms
from assay_service.api.token_ids import TokenReaders, collect_readers, read_items
from assay_service.errors import AssayError
from assay_service.registry import Registry
from assay_service.scoring.blend import compute_probability

API_VERSION = "1"

router = APIRouter(responses=schemas.ERROR_RESPONSES, route_class=StrictJsonRoute)


async def _get_scorer(request: Request) -> Scorer:
    scorer: Scorer = request.app.state.scorer
    return scorer


Scoring = Annotated[Scorer, Depends(_get_scorer)]


@router.post("/v1/score", response_model=answers.ScoreAnswer, response_model_exclude_unset=True)
@answer_plain(begin_plain_score)
async def score(body: schemas.ScoreRequest, request: Request, scorer: Scoring) -> Response:
    """Score items; an item that cannot be scored has an error in its place."""
    check_count(request, len(body.items), "items")
    registry = scorer.registry
    blend = registry.blend(body.model, body.weights)
    items = read_items(body.items, body.tokenizer_sha256, _collect_readers(request, registry))
    return await answer_score(request, scorer, items, [item.id for item in body.items], blend, body.truncation)


@router.post("/v1/rank", response_model=answers.RankAnswer, response_model_exclude_unset=True)
@answer_plain(begin_plain_rank)
async def rank(body: schemas.RankRequest, request: Request, scorer: Scoring) -> Response:
    """Rank the completions of one prompt; margins are those of the whole ranking, also where `top_n` cuts it."""
    check_completions(request, len(body.completions), "completions")
    blend = scorer.registry.blend(body.model, body.weights)
    # Errors of the prompt name the field in which the client sent it.
    prompt, field = (body.messages or [], "messages") if body.prompt is None else (body.prompt, "prompt")
    # A text alone is the common case; an object also has an id and a reason why it ended.
    entries = [schemas.RankCompletion(completion=c) if isinstance(c, str) else c for c in body.completions]
    items = build_completion_items(prompt, entries, field)
    return await answer_rank(request, scorer, items, [entry.id for entry in entries], blend, body.top_n)


@router.post("/v1/compare", response_model=answers.CompareAnswer, response_model_exclude_unset=True)
async def compare(body: schemas.CompareRequest, request: Request, scorer: Scoring) -> answers.CompareAnswer:
    """Compare two completions by every signal and every blend, or by one of them.

    Raises:
        AssayError: the model is unknown, or one of the completions cannot be scored.
    """
    registry = scorer.registry
    blend = None if body.model is None else registry.blend(body.model, None)
    names = list(registry.signals if blend is None else blend.weights)
    sides = [schemas.RankCompletion(completion=text) for text in (body.a, body.b)]
    items = build_completion_items(body.prompt, sides, "prompt")
    # Not `score_items`, which gives the one score of a blend: each margin is the difference of two logits.
    results = await run_while_connected(request, scorer.score(items, names, read_terms(request), request.state.timings))
    for param, result in zip(("a", "b"), results, strict=True):
        if isinstance(result, AssayError):
            error = copy.copy(result)  # other requests may hold the same error
            error.param = error.param if error.code == "invalid_message" else param
            raise error
    a, b = (_require_logits(result) for result in results)
    signals = {}
    for name in names:
        signal, margin = registry.signals[name], a.logits[name] - b.logits[name]
        # The margin of two absolute logits is not a Bradley-Terry logit.
        chance = {"prob_a": compute_probability(margin)} if signal.kind == "preference" else {}
        signals[name] = answers.ComparedSignal(
            margin=margin,
            a=answers.SignalValue.model_validate(answer_parts.build_signal_value(signal, a)),
            b=answers.SignalValue.model_validate(answer_parts.build_signal_value(signal, b)),
            **chance,
        )
    # A request that names a blend gets only its margin; one that names a signal gets none.
    margins = {
        name: _require_score(score_result(rule, a, registry.moments))
        - _require_score(score_result(rule, b, registry.moments))
        for name, rule in registry.blends.items()
        if body.model in (None, name)
    }
    return answers.CompareAnswer(
        id=f"compare-{uuid.uuid4().hex}",
        object="comparison",
        created=int(time.time()),
        signals=signals,
        blends={
            name: answers.ComparedBlend(margin=margin, **answer_parts.build_length_penalty(registry.blends[name]))
            for name, margin in margins.items()
        },
        provenance=answer_parts.build_provenance(registry, names, blend),
    )


@router.post("/v1/render", response_model=render_answers.RenderAnswer, response_model_exclude_unset=True)
async def render(body: schemas.RenderRequest, request: Request, scorer: Scoring) -> render_answers.RenderAnswer:
    """Return the exact text and token ids that every signal would score, or those of one signal or blend."""
    check_count(request, len(body.items), "items")
    registry = scorer.registry
    signals = list(registry.signals if body.model is None else registry.blend(body.model, None).weights)
    items = read_items(body.items, body.tokenizer_sha256, _collect_readers(request, registry))
    results = await run_while_connected(request, scorer.render(items, signals, body.truncation))
    ids = [item.id for item in body.items]
    # In a thread, because the texts are tokenized once more to find the characters of the tokens that are read.
    rows = await asyncio.to_thread(render_answers.build_rendered_rows, registry, results, ids)
    return render_answers.RenderAnswer(object="list", data=rows)


@router.get("/v1/models", response_model=answers.ModelsAnswer, response_model_exclude_unset=True)
async def models(request: Request, scorer: Scoring) -> answers.ModelsAnswer:
    """List the names that requests may use as `model`."""
    registry, declared = scorer.registry, request.app.state.settings.blends
    signals = [
        answers.ModelInfo.model_validate(
            {"id": name, "object": "model", "kind": signal.kind, "default": name == registry.default}
            | answer_parts.build_preset(signal)
            | answer_parts.build_quantization(signal)
        )
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
            **answer_parts.build_length_penalty(blend),
            **({"description": text} if (text := declared[name].description) else {}),
        )
        for name, blend in registry.blends.items()
    ]
    return answers.ModelsAnswer(object="list", data=[*signals, *blends])


@router.get("/info")
async def info(request: Request, scorer: Scoring) -> dict[str, Any]:
    """Return versions, limits and numerics, and how every signal renders and reads its items."""
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
        "tokenizers": {
            sha256: [reader.source for reader in readers]
            for sha256, readers in _collect_readers(request, registry).items()
        },
        "signals": {
            name: {
                "kind": signal.kind,
                "device": str(signal.model.device),
                "dtype": signal.provenance.dtype,
                "compute": signal.provenance.compute,
                "fidelity": answer_parts.describe_fidelity(signal),
                "quantization": signal.provenance.quantization,
                "invariant": registry.invariant[name],
                "kernels": asdict(signal.model.kernels),
                "forward": "packed" if signal.model.architecture.packed else "one item at a time",
                "max_length": signal.renderer.rules.max_length,
                "score_position": signal.renderer.rules.score_position,
                "steps": None if signal.renderer.rules.steps is None else signal.renderer.rules.steps.model_dump(),
                "aggregate": signal.reading.aggregate,
                "likelihood": signal.reading.likelihood,
                "gate": signal.renderer.rules.gate,
                "neutral_prompt": signal.renderer.rules.neutral_prompt,
                "eos": signal.renderer.rules.eos,
                "unfinished": signal.renderer.rules.unfinished,
                "dropped_content": signal.renderer.rules.dropped_content,
                "control_tokens": signal.renderer.rules.control_tokens,
                "reasoning": signal.renderer.rules.reasoning,
                "reasoning_tags": list(signal.renderer.rules.reasoning_tags),
                "token_types": signal.renderer.rules.token_types,
                "mean": None if signal.moments is None else signal.moments.mean,
                "std": None if signal.moments is None else signal.moments.std,
                "reference": None if signal.reference is None else signal.reference.model_dump(),
            }
            for name, signal in registry.signals.items()
        },
    }


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Return the metrics in the text format of Prometheus."""
    return Response(request.app.state.metrics.format_text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _collect_readers(request: Request, registry: Registry) -> TokenReaders:
    """Return the readers of token ids by tokenizer: those of the declared policies, then those of the signals."""
    # A declared policy reads ids before a signal that has the same tokenizer with another template.
    own = (signal.token_reader for signal in registry.signals.values())
    return collect_readers([*request.app.state.policy_readers, *own])


def _require_score(scored: ScoredItem | AssayError) -> float:
    if isinstance(scored, AssayError):
        raise scored
    return scored.score


def _require_logits(result: ItemScore | AssayError) -> ItemScore:
    # Callers have put errors aside already; the assertion only narrows the type.
    assert not isinstance(result, AssayError)
    return result
