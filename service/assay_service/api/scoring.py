"""Score the items of a request: the one path that the native endpoints and all compatible wires share."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request

from assay_service.api.cached_scores import find_cached_scores
from assay_service.api.guard import run_while_connected
from assay_service.api.scorer import ItemScore, Scorer
from assay_service.api.sources import ItemSource
from assay_service.api.terms import read_terms
from assay_service.errors import AssayError, ServingError
from assay_service.scoring.blend import Blend, Moments, blend_logits
from assay_service.scoring.item import Truncation
from assay_service.telemetry.sample_log import SampleLog


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredItem:
    """The blended score of one item, with the logits and rendered texts that gave it."""

    score: float
    result: ItemScore


async def score_items(
    request: Request,
    scorer: Scorer,
    items: Sequence[ItemSource],
    blend: Blend,
    truncation: Truncation = "error",
) -> list[ScoredItem | AssayError]:
    """Return the score of every item, or the error for which it has none, in the order of the items.

    Args:
        request: the request that holds the items; its work is cancelled if the client goes away.
        scorer: scorer that the request took at its beginning; it has the blend's signals.
        items: items to score; an error in place of an item is returned as it is.
        blend: rule that makes one score from the logits.
        truncation: policy for prompts that are too long.

    Raises:
        ServingError: the whole request was refused.
    """
    signals, terms, timings = list(blend.weights), read_terms(request), request.state.timings
    results = None
    if terms.deadline_s > time.monotonic():
        results = find_cached_scores(scorer, items, signals, timings, truncation)
    if results is None:
        results = await run_while_connected(request, scorer.score(items, signals, terms, timings, truncation))
    moments = scorer.registry.moments  # once, because the property builds a new mapping
    scored = [score_result(blend, result, moments) for result in results]
    samples: SampleLog | None = request.app.state.samples
    if samples is not None and samples.chooses(request.state.request_id):
        for index, item in enumerate(scored):
            if not isinstance(item, AssayError):
                place = {"request_id": request.state.request_id, "index": index, "blend": blend.name}
                samples.add(place | _describe_sample(item))
    return scored


def _describe_sample(item: ScoredItem) -> dict[str, Any]:
    """Return what the sample log has of an item; signals that read the same text share an entry of `texts`."""
    rendered = item.result.rendered
    texts = [
        {
            "signals": [name for name, other in rendered.items() if other is one],
            "tokens": len(one.sequence.ids),
            "completion_tokens": one.completion_tokens,
            "text": one.text,
        }
        for one in {id(each): each for each in rendered.values()}.values()
    ]
    return {"score": item.score, "logits": item.result.logits, "texts": texts}


def score_result(
    blend: Blend, result: ItemScore | AssayError, moments: Mapping[str, Moments]
) -> ScoredItem | AssayError:
    """Return the blended score of an item, or the error for which it has none."""
    if isinstance(result, AssayError):
        return result
    try:
        return ScoredItem(blend_logits(blend, result.logits, moments, result.completion_tokens), result)
    except AssayError as error:  # a weighted sum can overflow although every logit is finite
        return error


def check_count(request: Request, count: int, param: str) -> None:
    """Refuse a request with too many items, and give their number to the access log.

    Raises:
        ServingError: the request has more than `limits.max_items` items; the code is `too_many_items`.
    """
    request.state.items = count
    most = request.app.state.settings.limits.max_items
    if count > most:
        raise ServingError(
            f"the request has {count} {param}; the limit is {most} (max_items): split it into several requests",
            code="too_many_items",
            param=param,
        )


def check_completions(request: Request, count: int, param: str) -> None:
    """Refuse a request with too many completions of its one prompt, and give their number to the access log.

    Raises:
        ServingError: there are more than `limits.max_completions`, or `limits.max_items`; the code is `too_many_items`.
    """
    check_count(request, count, param)
    most = request.app.state.settings.limits.max_completions
    if count > most:
        raise ServingError(
            f"the request has {count} {param} of one prompt; the limit is {most} (max_completions): split it into "
            "several requests",
            code="too_many_items",
            param=param,
        )
