"""Pick the best of N completions: generate them, rank them in one request, and keep the evidence."""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.errors import GenerationFailed, InvalidInput, ItemsFailed, TransportError
from assay_client.generation import Endpoint, Generation, read_choice
from assay_client.messages import Prompt
from assay_client.provenance import Provenance
from assay_client.results import RankedCompletion, RankResult
from assay_client.types import ItemError, ScoreFailure

NO_TEXT = "no_text"
GENERATION_FAILED = "generation_failed"
RETRYABLE = frozenset({408, 429, 500, 502, 503, 504})  # statuses of a generator that may pass

# A completion as a generator may return it: a text, `(text, finish_reason)`, or a `Generation`.
Generated: TypeAlias = str | tuple[str | None, str | None] | Generation
Generate: TypeAlias = Callable[[Prompt, int], Iterable[Generated]]
GenerateAsync: TypeAlias = Callable[[Prompt, int], Awaitable[Iterable[Generated]]]


@dataclass(frozen=True, slots=True)
class BestOfN:
    """The best of N completions, with all that decided it.

    Attributes:
        index: the position of the pick among `completions`; of equal scores the first.
        completions: all completions, in the order of generation.
        ranking: the scored completions, best first, by their position; those that were refused, with the reason; and
            the models that decided.
    """

    index: int
    completions: tuple[Generation, ...]
    ranking: RankResult

    @property
    def text(self) -> str:
        """Return the text of the pick."""
        text = self.completions[self.index].text
        assert text is not None  # only completions with a text are ranked
        return text

    @property
    def score(self) -> float:
        """Return the score of the pick."""
        return self.ranking.results[0].score

    @property
    def scores(self) -> list[float | None]:
        """Return the score of each completion, in the order of generation; None for one that was refused."""
        by_index = {row.index: row.score for row in self.ranking.results}
        return [by_index.get(index) for index in range(len(self.completions))]

    @property
    def errors(self) -> tuple[ScoreFailure, ...]:
        """Return the completions that were refused, by their position."""
        return self.ranking.errors

    @property
    def provenance(self) -> Provenance:
        """Return the models and files that decided the scores."""
        return self.ranking.provenance


def best_of_n(
    generate: Generate | Endpoint,
    reward: RewardClient,
    n: int,
    *,
    prompt: Prompt,
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
) -> BestOfN:
    """Generate `n` completions of a prompt, and pick the one with the highest score.

    Args:
        generate: an `Endpoint`, or a function of the prompt and `n` that returns the completions: texts, pairs
            `(text, finish_reason)`, or `Generation`s. Without a finish reason
            a completion counts as ended.
        reward: the client of the service that ranks.
        n: the number of completions.
        prompt: the prompt, as text or as messages.
        model: the signal or blend to rank by; the server's default if neither this nor `weights` is given.
        weights: the weight of each signal by name, instead of a model.

    Raises:
        ItemsFailed: no completion could be scored.
        InvalidInput: `n` is below 1, or `generate` returned another number of completions, or something else.
        GenerationFailed: the endpoint gave no completions.
        AssayError: the endpoint or the service did not answer, or refused the request.
    """
    _check_count(n)
    ask = generate.generate if isinstance(generate, Endpoint) else generate
    completions = _read_completions(ask(prompt, n), n)
    sent = _select(completions)
    return _pick(completions, sent, reward.rank(prompt, _encode(completions, sent), model=model, weights=weights))


async def best_of_n_async(
    generate: GenerateAsync | Endpoint,
    reward: AsyncRewardClient,
    n: int,
    *,
    prompt: Prompt,
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
) -> BestOfN:
    """Generate `n` completions of a prompt, and pick the one with the highest score; see `best_of_n`.

    Raises:
        AssayError: the errors of `best_of_n`, and InvalidInput if `generate` is not a coroutine function.
    """
    _check_count(n)
    ask = generate.generate_async if isinstance(generate, Endpoint) else generate
    generated = ask(prompt, n)
    if not inspect.isawaitable(generated):
        raise InvalidInput("`generate` must be a coroutine function; `best_of_n` takes other functions")
    completions = _read_completions(await generated, n)
    sent = _select(completions)
    return _pick(completions, sent, await reward.rank(prompt, _encode(completions, sent), model=model, weights=weights))


def _check_count(n: int) -> None:
    if n < 1:
        raise InvalidInput("`n` must be at least 1")


def _read_completions(generated: object, n: int) -> tuple[Generation, ...]:
    """Return what a generator gave as completions; raise InvalidInput unless there are `n` of a known form."""
    if inspect.iscoroutine(generated):
        generated.close()  # it never runs, of which Python would warn
        raise InvalidInput("`generate` is a coroutine function; pass it to `best_of_n_async`")
    # A text has as many parts as characters, and would give completions of one character each.
    if isinstance(generated, str | bytes | Mapping | Generation) or not isinstance(generated, Iterable):
        raise InvalidInput(f"`generate` must return a list of {n} completions, not {generated!r:.60}")
    completions = tuple(_read_completion(one) for one in generated)
    if len(completions) != n:
        raise InvalidInput(f"`generate` must return {n} completions, not {len(completions)}")
    return completions


def _read_completion(one: object) -> Generation:
    if isinstance(one, Generation) and one.text is None:
        return one
    text: object
    finish_reason: object
    if isinstance(one, Generation):
        text, finish_reason = one.text, one.finish_reason
    else:
        text, finish_reason = one if isinstance(one, tuple) and len(one) == 2 else (one, None)
    if not isinstance(text, str) and (text is not None or not isinstance(one, tuple)):
        raise InvalidInput(f"a completion must be a text, (text, finish_reason) or a Generation, not {one!r:.60}")
    return read_choice(text, finish_reason)


def _select(completions: Sequence[Generation]) -> list[int]:
    """Return the positions of the completions that can be sent; raise ItemsFailed if there are none."""
    sent = [index for index, one in enumerate(completions) if one.text is not None]
    if not sent:
        _raise_refused([_build_failure(index, one) for index, one in enumerate(completions)])
    return sent


def _encode(completions: Sequence[Generation], sent: Sequence[int]) -> list[Mapping[str, object]]:
    rows = ({"completion": completions[k].text, "finish_reason": completions[k].finish_reason} for k in sent)
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _build_failure(index: int, completion: Generation) -> ScoreFailure:
    error, reason = completion.error, completion.reason or "the completion has no text"
    if error is None:
        return ScoreFailure(index, None, ItemError(NO_TEXT, reason, "completion", retryable=False))
    again = isinstance(error, TransportError) or (isinstance(error, GenerationFailed) and error.status in RETRYABLE)
    return ScoreFailure(index, None, ItemError(GENERATION_FAILED, reason, None, again))


def _pick(completions: tuple[Generation, ...], sent: Sequence[int], ranked: RankResult) -> BestOfN:
    """Return the pick; the ranking's positions are those in `sent`, and become those in `completions`.

    Raises:
        ItemsFailed: no completion could be scored.
    """
    results = [replace(row, index=sent[row.index]) for row in ranked.results]
    refused = [replace(row, index=sent[row.index]) for row in ranked.errors]
    refused += [_build_failure(index, one) for index, one in enumerate(completions) if one.text is None]
    refused.sort(key=lambda row: row.index)
    if not results:
        _raise_refused(refused)
    results.sort(key=_get_place)  # the service breaks ties by position, too; another one may not
    return BestOfN(results[0].index, completions, replace(ranked, results=tuple(results), errors=tuple(refused)))


def _get_place(row: RankedCompletion) -> tuple[float, int]:
    return -row.score, row.index


def _raise_refused(failures: Sequence[ScoreFailure]) -> None:
    raise ItemsFailed(tuple(row.to_exception() for row in failures), len(failures))
