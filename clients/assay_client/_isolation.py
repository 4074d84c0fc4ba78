"""Score or rank many rows of a file, of which one that cannot be sent fails alone: it must not end a run of hours."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from assay_client._answers import check_fingerprint
from assay_client.errors import BodyTooLarge, InvalidRequest, ServerError, TooManyItems, TooManyTokens
from assay_client.results import RankedCompletion, RankResult
from assay_client.types import Item, ItemError, Score, ScoreFailure, ScoreResult

_ITEM = re.compile(r"items\[(\d+)\]")  # how the service names the item for which it refuses a request
_RANK_ROW = re.compile(r"(prompt|messages|completions)\b")  # what a row of a ranking decides; the rest is for all rows

Send = Callable[[Sequence[Item]], Awaitable[ScoreResult]]


@dataclass(frozen=True, slots=True)
class Scored:
    """The outcomes of some items.

    Attributes:
        data: the outcome of each item, in their order.
        fingerprint: the fingerprint of the scores; None if the service answered no request.
    """

    data: tuple[Score | ScoreFailure, ...]
    fingerprint: str | None


async def score_apart(items: Sequence[Item], send: Send) -> Scored:
    """Score items in one request, or in several if the service or a gateway refuses that one.

    A request that is too large is sent in halves. An item that breaks the schema, or is too large alone, fails.

    Args:
        items: the items, at least one.
        send: the function that sends one request.

    Raises:
        ServerError: the request was refused for another reason than its size or one item.
        FingerprintChanged: the model changed between two requests.
    """
    try:
        result = await send(items)
    except (BodyTooLarge, TooManyItems, TooManyTokens) as error:
        if len(items) == 1:
            return _fail(items[0], error)
        middle = len(items) // 2
        return _join([await score_apart(part, send) for part in (items[:middle], items[middle:])])
    except InvalidRequest as error:
        place = _ITEM.match(param := error.param or "")
        if place is None or (bad := int(place[1])) >= len(items):
            raise
        parts = [items[:bad], items[bad + 1 :]]
        before, after = [await score_apart(part, send) if part else Scored((), None) for part in parts]
        return _join([before, _fail(items[bad], error, param[place.end() :].lstrip(".")), after])
    return Scored(result.data, result.fingerprint)


@dataclass(frozen=True, slots=True)
class RefusedRanking:
    """A row that was refused as a whole: an error for each of its completions, in place of a `RankResult`."""

    errors: tuple[ScoreFailure, ...]
    results: tuple[RankedCompletion, ...] = ()
    model: str | None = None


Ranking: TypeAlias = RankResult | RefusedRanking


def find_fingerprint(ranking: Ranking) -> str | None:
    """Return the fingerprint of the scores; None for a row that was refused."""
    return None if isinstance(ranking, RefusedRanking) else ranking.provenance.fingerprint


async def rank_alone(completions: Sequence[object], send: Callable[[], Awaitable[RankResult]]) -> Ranking:
    """Rank the completions of one row; a row that the service or a gateway refuses fails by itself.

    Args:
        completions: the completions of the row, in wire form.
        send: the function that sends the request.

    Raises:
        ServerError: the request was refused for another reason than its size or its row.
    """
    try:
        return await send()
    except (BodyTooLarge, TooManyItems, TooManyTokens, InvalidRequest) as error:
        if isinstance(error, InvalidRequest) and not _RANK_ROW.match(error.param or ""):
            raise
        failure = ItemError(error.code, str(error.args[0]), error.param, retryable=False)
        ids = [one.get("id") if isinstance(one, Mapping) else None for one in completions]
        return RefusedRanking(
            tuple(ScoreFailure(index, name, failure, error.request_id) for index, name in enumerate(ids))
        )


def _fail(item: Item, error: ServerError, param: str | None = None) -> Scored:
    """Return the outcome of one item for which a request was refused."""
    failure = ItemError(error.code, str(error.args[0]), param or None, retryable=False)
    return Scored((ScoreFailure(0, item.id, failure, error.request_id),), None)


def _join(parts: Sequence[Scored]) -> Scored:
    fingerprint: str | None = None
    for part in parts:
        if part.fingerprint is not None:
            fingerprint = check_fingerprint(fingerprint, part.fingerprint)
    outcomes = [outcome for part in parts for outcome in part.data]
    return Scored(tuple(replace(outcome, index=index) for index, outcome in enumerate(outcomes)), fingerprint)
