"""Rank the documents of a rerank request: the query is the prompt, and each document is a completion of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from assay_service.api.compat.wire import WireContext, WireScore
from assay_service.api.scoring import check_completions
from assay_service.scoring.blend import Blend, compute_probability, rank_scores
from assay_service.scoring.item import Item, Truncation


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One place of a ranking.

    Attributes:
        index: index of the document in the request.
        score: score of the blend, by which documents are ranked.
    """

    index: int
    score: float

    @property
    def relevance(self) -> float:
        """Return the sigmoid of the score, in 0..1; a probability only where the score is an absolute logit."""
        return compute_probability(self.score)


@dataclass(frozen=True, slots=True)
class Ranking:
    """All documents of a request by falling score, equal scores by rising index; and the tokens that were read."""

    places: Sequence[RankedDocument]
    tokens: int


async def rank_documents(
    context: WireContext,
    blend: Blend,
    query: str,
    documents: Sequence[str],
    field: str,
    truncation: Truncation = "error",
) -> Ranking:
    """Return the ranking of the documents of one query.

    Args:
        context: the wire that scores.
        blend: rule that makes one score from the logits.
        query: the prompt.
        documents: completions of the prompt.
        field: name of the field of the request that holds the documents, for errors.
        truncation: policy for prompts that are too long.

    Raises:
        AssayError: as for `WireContext.score`.
    """
    check_completions(context.request, len(documents), field)
    items = [Item.of(query, document) for document in documents]
    scored = await context.score(items, blend, [f"{field}[{index}]" for index in range(len(items))], truncation)
    # By scores: the sigmoid of large ones is the same number, which would make ties.
    places = rank_scores({index: one.score for index, one in enumerate(scored)})
    return Ranking([RankedDocument(p.index, scored[p.index].score) for p in places], _count_tokens(scored))


def _count_tokens(scored: Sequence[WireScore]) -> int:
    return sum(one.tokens for one in scored)
