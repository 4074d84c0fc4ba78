"""From items to answers: render, submit, blend, gather errors. Shared by every endpoint that scores.

Rendering has a thread of its own, so that tokenising a large request does not hold up the event loop, and works in
slices, so that it does not hold up a small request either.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass

from assay_service.api import answers
from assay_service.engine.engine import Engine
from assay_service.engine.job import Task
from assay_service.errors import AssayError, ContentError
from assay_service.metrics import Metrics
from assay_service.registry import Provenance, Registry
from assay_service.scoring.blend import Blend, blended, probability
from assay_service.scoring.item import Item, Truncation
from assay_service.scoring.render import Rendered

# One turn of the render thread: whichever of items and characters is used up first.
SLICE_ITEMS = 16
SLICE_CHARS = 50_000

# What a message counts besides its content and role.
MESSAGE_CHARS = 16

Renderings = dict[str, Rendered]


@dataclass(frozen=True, slots=True)
class ItemScore:
    """The logits of one item and what they were read from, by signal."""

    logits: dict[str, float]
    rendered: Renderings


class Scorer:
    """Scores items.

    Args:
        registry: what is served.
        engine: runs the models.
        metrics: is told of every item.
        max_item_chars: characters in one item; longer ones are not even tokenised.
    """

    def __init__(self, registry: Registry, engine: Engine, metrics: Metrics, max_item_chars: int) -> None:
        self.registry = registry
        self._max_item_chars = max_item_chars
        self.engine = engine
        self._metrics = metrics
        self._render_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="assay-render")

    def close(self) -> None:
        """Ends the render thread."""
        self._render_thread.shutdown(wait=False, cancel_futures=True)

    async def score(
        self,
        items: Sequence[Item | ContentError],
        signals: Sequence[str],
        truncation: Truncation = "error",
        *,
        fresh: bool = False,
    ) -> list[ItemScore | AssayError]:
        """The logits of every item, or why it has none, in order.

        Args:
            items: what to score, or why it is not an item.
            signals: by which signals.
            truncation: of prompts that are too long.
            fresh: run the models even for what is remembered.

        Raises:
            ServingError: the whole request was refused.
        """
        rendered = await self.render(items, signals, truncation)
        renderings = [rendering for rendering in rendered if not isinstance(rendering, AssayError)]
        tasks = [Task(name, r.sequence) for by_signal in renderings for name, r in by_signal.items()]
        futures = self.engine.submit(tasks, fresh=fresh)
        waiting = iter(futures)
        results: list[ItemScore | AssayError] = []
        try:
            for rendering in rendered:
                if isinstance(rendering, AssayError):
                    results.append(rendering)
                else:
                    results.append(await _gathered({name: next(waiting) for name in rendering}, rendering))
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        self._count(results)
        return results

    async def render(
        self, items: Sequence[Item | ContentError], signals: Sequence[str], truncation: Truncation
    ) -> list[Renderings | AssayError]:
        """Every item as every signal sees it, or why that cannot be."""
        loop = asyncio.get_running_loop()
        rendered: list[Renderings | AssayError] = []
        for part in _slices(items):
            rendered += await loop.run_in_executor(self._render_thread, self._render_slice, part, signals, truncation)
        return rendered

    def value(self, name: str, score: ItemScore) -> answers.SignalValue:
        """One signal's part of an answer; only absolute signals have a probability (scoring-traps 11)."""
        rendered = score.rendered[name]
        fields: dict[str, float | int] = {
            "logit": score.logits[name],
            "prompt_tokens": rendered.boundary,
            "completion_tokens": rendered.completion_tokens,
            "truncated_tokens": rendered.truncated_tokens,
            "dropped_tokens": rendered.dropped_tokens,
            "control_tokens_as_text": rendered.control_tokens_as_text,
        }
        if self.registry.signals[name].kind == "absolute":
            fields["prob"] = probability(score.logits[name])
        return answers.SignalValue.model_validate(fields)

    def shown(self, name: str, rendered: Rendered) -> answers.RenderedSignal:
        """What exactly one signal scores."""
        span = rendered.sequence.score
        rules = self.registry.signals[name].renderer.rules
        types = {} if rules.token_types is None else {"token_types": rendered.sequence.types}
        return answers.RenderedSignal(
            text=rendered.text,
            ids=list(rendered.sequence.ids),
            boundary=rendered.boundary,
            score_position=answers.ScorePositionInfo(policy=rules.score_position, start=span.start, end=span.end),
            truncated_tokens=rendered.truncated_tokens,
            dropped_tokens=rendered.dropped_tokens,
            dropped=[
                answers.DroppedText(message=part.slot.index, field=part.slot.field, text=part.text)
                for part in rendered.dropped
            ],
            control_tokens_as_text=rendered.control_tokens_as_text,
            **types,
        )

    def blended(self, blend: Blend, score: ItemScore | AssayError) -> float | AssayError:
        """The score of an item, or why it has none."""
        if isinstance(score, AssayError):
            return score
        try:
            return blended(blend, score.logits, self.registry.moments)
        except AssayError as error:
            return error

    def provenance(self, signals: Iterable[str], blend: Blend | None) -> answers.ProvenanceInfo:
        """Where the numbers of an answer come from."""
        described: dict[str, Provenance] = {name: self.registry.signals[name].provenance for name in signals}
        fields: dict[str, object] = {
            "signals": {name: asdict(provenance) for name, provenance in described.items()},
            "fingerprint": self.registry.fingerprint(blend),
        }
        if blend is not None:
            fields["blend"] = asdict(blend)
        return answers.ProvenanceInfo.model_validate(fields)

    def _render_slice(
        self, items: Sequence[Item | ContentError], signals: Sequence[str], truncation: Truncation
    ) -> list[Renderings | AssayError]:
        rendered: list[Renderings | AssayError] = []
        for item in items:
            try:
                if isinstance(item, ContentError):
                    raise item
                self._check_size(item)
                rendered.append(self._rendered(item, signals, truncation))
            except ContentError as error:
                rendered.append(error)
        return rendered

    def _rendered(self, item: Item, signals: Sequence[str], truncation: Truncation) -> Renderings:
        renderers = {name: self.registry.signals[name].renderer for name in signals}
        once = {renderer: renderer.render(item, truncation) for renderer in dict.fromkeys(renderers.values())}
        return {name: once[renderer] for name, renderer in renderers.items()}

    def _check_size(self, item: Item) -> None:
        if (chars := _chars(item)) > self._max_item_chars:
            raise ContentError(f"{chars} characters, at most {self._max_item_chars} are read", code="too_long")

    def _count(self, results: Sequence[ItemScore | AssayError]) -> None:
        for result in results:
            if isinstance(result, AssayError):
                self._metrics.item_errors.labels(result.code).inc()
                continue
            self._metrics.truncated.inc(any(r.truncated_tokens for r in result.rendered.values()))
            for name, logit in result.logits.items():
                self._metrics.items.labels(name).inc()
                self._metrics.logits.labels(name).observe(logit)


def _chars(item: Item | ContentError) -> int:
    """What rendering has to write at least: also a message without content takes a template's words."""
    if isinstance(item, ContentError):
        return 0
    texts = (text for message in item.messages for _, text in message.texts())
    return sum(map(len, texts)) + sum(len(message.role) + MESSAGE_CHARS for message in item.messages)


def _slices(items: Sequence[Item | ContentError]) -> Iterator[list[Item | ContentError]]:
    """Cuts `items` into turns of the render thread; an item that is long by itself is a turn of its own."""
    part: list[Item | ContentError] = []
    chars = 0
    for item in items:
        if part and (len(part) == SLICE_ITEMS or chars + _chars(item) > SLICE_CHARS):
            yield part
            part, chars = [], 0
        part.append(item)
        chars += _chars(item)
    if part:
        yield part


async def _gathered(futures: dict[str, "Future[float]"], rendered: Renderings) -> ItemScore | AssayError:
    """The logits of one item; the first failure of any signal is the item's."""
    logits = {}
    failure: AssayError | None = None
    for name, future in futures.items():
        try:
            logits[name] = await asyncio.wrap_future(future)
        except AssayError as error:
            failure = failure or error
    return failure or ItemScore(logits, rendered)
