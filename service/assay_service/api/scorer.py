"""Turn items into logits: render them, submit them to the engine, and gather results and errors.

Every endpoint that scores uses this module. Rendering has a thread of its own, so that tokenizing a large request does
not hold up the event loop. It works in slices, so that a large request does not hold up a small one either.
"""

import asyncio
import copy
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from assay_service.api.rendering_cache import RenderingCache, Renderings, RenderKey, build_key
from assay_service.api.sources import ItemSource, UnreadItem, count_chars, cut_slices
from assay_service.engine.admission import Terms
from assay_service.engine.cache import Outputs
from assay_service.engine.engine import Engine
from assay_service.engine.job import Task
from assay_service.errors import AssayError, ContentError, DeadlineExceeded, NotFinite, Overloaded, ServingError
from assay_service.registry import Registry
from assay_service.scoring.item import Item, Truncation
from assay_service.scoring.reading import Reading
from assay_service.scoring.trunk import Trunk
from assay_service.settings import Limits
from assay_service.telemetry.metrics import Metrics
from assay_service.telemetry.timings import Timings


@dataclass(frozen=True, slots=True)
class ItemScore:
    """The results of one item, and the rendered texts that gave them, both by signal."""

    readings: dict[str, Reading]
    rendered: Renderings

    @property
    def logits(self) -> dict[str, float]:
        """Return the logits by signal."""
        return {name: reading.logit for name, reading in self.readings.items()}

    @property
    def completion_tokens(self) -> dict[str, int]:
        """Return the number of tokens in the completion, by signal."""
        return {name: rendered.completion_tokens for name, rendered in self.rendered.items()}


class Scorer:
    """Renders and scores the items of requests.

    Args:
        registry: the served signals and blends.
        engine: the engine that runs the models.
        metrics: the counters and histograms that every result updates.
        limits: limits of items and requests; longer items are refused before they are tokenized.
    """

    def __init__(self, registry: Registry, engine: Engine, metrics: Metrics, limits: Limits) -> None:
        self.registry = registry
        self._limits = limits
        self.engine = engine
        self._metrics = metrics
        self.rendering_cache = RenderingCache(limits.rendering_cache_bytes)  # used on the event loop only
        # With one thread, the slices of several requests take turns in the order in which they were submitted.
        self._render_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="assay-render")

    def serve(self, registry: Registry) -> "Scorer":
        """Return a scorer of another registry on the same engine and render thread; this one finishes its requests.

        Its cache of renderings is empty, because those of a removed signal would hold the tokenizer.
        """
        other = copy.copy(self)
        other.registry = registry
        other.rendering_cache = RenderingCache(self._limits.rendering_cache_bytes)
        return other

    def close(self) -> None:
        """End the render thread."""
        self._render_thread.shutdown(wait=False, cancel_futures=True)

    async def score(
        self,
        items: Sequence[ItemSource],
        signals: Sequence[str],
        terms: Terms,
        timings: Timings,
        truncation: Truncation = "error",
        *,
        fresh: bool = False,
    ) -> list[ItemScore | AssayError]:
        """Return the logits of every item, or the error for which it has none, in the order of the items.

        Args:
            items: items to score; an error in place of an item is returned as it is.
            signals: names of the signals that score them.
            terms: who asks, and for how long they wait.
            timings: times of the request, to which those of its phases are added.
            truncation: policy for prompts that are too long.
            fresh: True runs the models even for logits that are cached.

        Raises:
            ServingError: the whole request was refused, or its time ended.
        """
        left_s = terms.deadline_s - time.monotonic()
        try:
            async with asyncio.timeout(None if math.isinf(left_s) else left_s):
                results = await self._score(items, signals, terms, timings, truncation, fresh=fresh)
        except TimeoutError:  # the sequences that still waited have left the queue with their futures
            self._metrics.rejected.labels("expired").inc()
            raise DeadlineExceeded("the client's time ended while the request waited", reason="expired") from None
        except (Overloaded, DeadlineExceeded) as error:
            self._metrics.rejected.labels(error.reason).inc()
            raise
        self.count(results)
        return results

    async def _score(
        self,
        items: Sequence[ItemSource],
        signals: Sequence[str],
        terms: Terms,
        timings: Timings,
        truncation: Truncation,
        *,
        fresh: bool,
    ) -> list[ItemScore | AssayError]:
        # Signals that share a trunk share their renderer, so any of them has the sequence.
        readers = {self.registry.trunks[name]: name for name in signals}
        chars = sum(map(count_chars, items)) * len(readers)
        timings.rendering_s = time.monotonic()
        with self.engine.expect(terms, chars, len(items) * len(readers)):
            rendered = await self.render(items, signals, truncation)
        renderings = [rendering for rendering in rendered if not isinstance(rendering, AssayError)]
        identities = self.registry.identities
        tasks = [
            Task(trunk, r[name].sequence, identities.get(trunk.name))
            for r in renderings
            for trunk, name in readers.items()
        ]
        self._check_tokens(tasks)
        futures = self.engine.submit(tasks, terms, timings, chars=chars, fresh=fresh)
        waiting = iter(futures)  # in the order of `tasks`: by item, then by trunk
        results: list[ItemScore | AssayError] = []
        try:
            for rendering in rendered:
                if isinstance(rendering, AssayError):
                    results.append(rendering)
                else:
                    results.append(await self._gather({trunk: next(waiting) for trunk in readers}, rendering))
        except asyncio.CancelledError:
            # The client is gone, or its time is over. The engine drops sequences whose futures are all cancelled.
            for future in futures:
                future.cancel()
            raise
        return results

    def _check_tokens(self, tasks: Sequence[Task]) -> None:
        tokens = sum(len(task.sequence.ids) for task in tasks)
        if not self.allows(tokens):
            raise ServingError(
                f"the request has {tokens} tokens; the limit is {self._limits.max_request_tokens} "
                "(max_request_tokens): split it into several requests",
                code="too_many_tokens",
            )

    def allows(self, tokens: int) -> bool:
        """Return whether a request may have this number of tokens, over all its items and trunks."""
        return tokens <= self._limits.max_request_tokens

    async def render(
        self, items: Sequence[ItemSource], signals: Sequence[str], truncation: Truncation
    ) -> list[Renderings | AssayError]:
        """Return every item as each signal reads it, or the error for which it cannot be rendered.

        Args:
            items: items to render; an error in place of an item is returned as it is.
            signals: names of the signals that read them.
            truncation: policy for prompts that are too long.
        """
        key = self.build_render_key(signals, truncation)
        cached = [self.rendering_cache.get(key, item) if isinstance(item, Item) else None for item in items]
        new = [item for item, entry in zip(items, cached, strict=True) if entry is None]
        loop = asyncio.get_running_loop()
        rendered: list[Renderings | AssayError] = []
        for part in cut_slices(new):
            rendered += await loop.run_in_executor(self._render_thread, self._render_slice, part, signals, truncation)
        for item, renderings in zip(new, rendered, strict=True):
            if isinstance(item, Item) and not isinstance(renderings, AssayError):
                self.rendering_cache.put(key, item, renderings)
        rest = iter(rendered)
        return [next(rest) if entry is None else entry.renderings for entry in cached]

    def build_render_key(self, signals: Sequence[str], truncation: Truncation) -> RenderKey:
        """Return the key of the rendering cache for these signals."""
        return build_key({name: self.registry.signals[name].renderer for name in signals}, truncation)

    def _render_slice(
        self, items: Sequence[ItemSource], signals: Sequence[str], truncation: Truncation
    ) -> list[Renderings | AssayError]:
        rendered: list[Renderings | AssayError] = []
        for item in items:
            try:
                if isinstance(item, ContentError):
                    raise item
                self._check_size(item)
                if isinstance(item, UnreadItem):
                    item = item.read()  # noqa: PLW2901 - the same item in another form
                    self._check_size(item)
                rendered.append(self._render_item(item, signals, truncation))
            except ContentError as error:
                # Without its frames, which hold this scorer and so the models of removed signals.
                rendered.append(error.with_traceback(None))
        return rendered

    def _render_item(self, item: Item, signals: Sequence[str], truncation: Truncation) -> Renderings:
        # Signals with the same template and rules share a renderer, so their text is rendered once.
        renderers = {name: self.registry.signals[name].renderer for name in signals}
        once = {renderer: renderer.render(item, truncation) for renderer in dict.fromkeys(renderers.values())}
        return {name: once[renderer] for name, renderer in renderers.items()}

    def _check_size(self, item: ItemSource) -> None:
        if (chars := count_chars(item)) > (most := self._limits.max_item_chars):
            raise ContentError(
                f"the item has {chars} characters; the limit is {most} (max_item_chars)", code="too_long"
            )
        if isinstance(item, Item) and (count := len(item.messages)) > (most := self._limits.max_messages):
            raise ContentError(f"the item has {count} messages; the limit is {most} (max_messages)", code="too_long")

    async def _gather(self, futures: Mapping[Trunk, "Future[Outputs]"], rendered: Renderings) -> ItemScore | AssayError:
        """Wait for the logits of one item; the first failure of any signal becomes the item's error."""
        outputs: dict[str, tuple[float, ...] | None] = {}
        failure: AssayError | None = None
        for trunk, future in futures.items():
            try:
                of_trunk: Outputs = await asyncio.wrap_future(future)
                outputs |= zip(trunk.signals, of_trunk, strict=True)
            except AssayError as error:
                failure = failure or error
        return self.read(outputs, rendered) if failure is None else failure

    def read(self, outputs: Mapping[str, tuple[float, ...] | None], rendered: Renderings) -> ItemScore | AssayError:
        """Return the score of one item from what the models computed, by signal, or the error for which it has none."""
        try:
            return ItemScore({name: self._read(name, outputs[name]) for name in rendered}, rendered)
        except AssayError as error:
            return error

    def _read(self, signal: str, numbers: tuple[float, ...] | None) -> Reading:
        """Return the result of one signal for the numbers of its head; None stands for numbers that are not finite."""
        if numbers is None:
            raise NotFinite("the model computed a logit that is not finite (NaN or infinite)")
        return self.registry.signals[signal].reading.read(numbers)

    def count(self, results: Sequence[ItemScore | AssayError]) -> None:
        """Count the items of a request, and what they were given."""
        for result in results:
            if isinstance(result, AssayError):
                self._metrics.item_errors.labels(result.code).inc()
                continue
            self._metrics.truncated.inc(any(r.truncated_tokens for r in result.rendered.values()))
            for name, logit in result.logits.items():
                self._metrics.count_score(name, logit, result.rendered[name].completion_tokens)
