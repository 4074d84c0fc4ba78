"""Answer `/v1/score` and `/v1/rank`: for bodies that the schemas have read, and for plain ones."""

import time
import uuid
from collections.abc import Coroutine, Sequence
from typing import Any

from fastapi import Request, Response

from assay_service.api.answer_parts import ProvenanceWriter, build_row, check_finite, write_answer
from assay_service.api.plain_bodies import read_rank, read_score
from assay_service.api.scorer import Scorer
from assay_service.api.scoring import check_completions, check_count, score_items
from assay_service.api.sources import ItemSource
from assay_service.errors import AssayError
from assay_service.registry import Registry
from assay_service.scoring.blend import Blend, rank_scores
from assay_service.scoring.item import Truncation


def begin_plain_score(request: Request, body: bytes) -> Coroutine[Any, Any, Response] | None:
    """Begin to answer a plain body of `/v1/score`; None for a body that is not plain."""
    plain = read_score(body)
    if plain is None:
        return None
    check_count(request, len(plain.items), "items")
    scorer: Scorer = request.app.state.scorer
    blend = scorer.registry.blend(plain.model, None)
    return answer_score(request, scorer, plain.items, plain.ids, blend, plain.truncation)


def begin_plain_rank(request: Request, body: bytes) -> Coroutine[Any, Any, Response] | None:
    """Begin to answer a plain body of `/v1/rank`; None for a body that is not plain."""
    plain = read_rank(body)
    if plain is None:
        return None
    check_completions(request, len(plain.items), "completions")
    scorer: Scorer = request.app.state.scorer
    blend = scorer.registry.blend(plain.model, None)
    return answer_rank(request, scorer, plain.items, plain.ids, blend, None)


async def answer_score(
    request: Request,
    scorer: Scorer,
    items: Sequence[ItemSource],
    ids: Sequence[str | None],
    blend: Blend,
    truncation: Truncation,
) -> Response:
    """Score items, and return a `ScoreAnswer`; an item that cannot be scored has an error in its place."""
    scored = await score_items(request, scorer, items, blend, truncation)
    registry = scorer.registry
    rows = [
        build_row(registry, result, index=index, item_id=item_id)
        for index, (item_id, result) in enumerate(zip(ids, scored, strict=True))
    ]
    return _write(request, scorer.registry, "score", "list", blend, {"data": rows})


async def answer_rank(
    request: Request,
    scorer: Scorer,
    items: Sequence[ItemSource],
    ids: Sequence[str | None],
    blend: Blend,
    top_n: int | None,
) -> Response:
    """Rank the completions of one prompt, and return a `RankAnswer`.

    Args:
        request: the request.
        scorer: scorer that the request took at its beginning; it has the blend's signals.
        items: an item for each completion.
        ids: the id of each completion, None where the client sent none.
        blend: rule that makes one score from the logits.
        top_n: number of places in the answer; None for all. Margins are those of the whole ranking.
    """
    scored = await score_items(request, scorer, items, blend)
    registry = scorer.registry
    rows = [
        build_row(registry, result, index=index, item_id=item_id)
        for index, (item_id, result) in enumerate(zip(ids, scored, strict=True))
    ]
    places = rank_scores({i: result.score for i, result in enumerate(scored) if not isinstance(result, AssayError)})
    ranking = [
        {**rows[place.index], "margin": None if place.margin is None else check_finite(place.margin)}
        for place in places[:top_n]  # cut last
    ]
    errors = [row for row, result in zip(rows, scored, strict=True) if isinstance(result, AssayError)]
    return _write(request, scorer.registry, "rank", "rank", blend, {"results": ranking, "errors": errors})


def _write(request: Request, registry: Registry, name: str, kind: str, blend: Blend, rows: dict[str, Any]) -> Response:
    """Return an answer with the fields that all answers about a blend have."""
    writer: ProvenanceWriter = request.app.state.provenance
    head = {"id": f"{name}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": blend.name}
    return write_answer({**head, **rows, "provenance": writer.write(registry, blend)})
