"""`RewardClient` and `AsyncRewardClient`: two thin shells that own the sockets and the concurrency.

What a request says, what its answer means and when to try again is decided in `_protocol` and `_retry`.
"""

import asyncio
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Self, TypeVar

import httpx

from assay_client import _protocol as p
from assay_client._answers import merge_renders, merge_scores
from assay_client._base_client import BaseClient, check_answers, is_ready, transport_error
from assay_client._connections import Loops, Process, close_at_end
from assay_client._retry import Done, Reply, Send
from assay_client.errors import Timeout, TransportError
from assay_client.results import Comparison, ModelCard, RankResult, RenderResult
from assay_client.types import Prompt, ScoreResult, Truncation

T = TypeVar("T")


class RewardClient(BaseClient[Process, httpx.BaseTransport]):
    """Scores completions over HTTP. May be used from several threads and in forked processes at once."""

    def _here(self) -> Process:
        return self._mine(lambda: Process(httpx.Client(**self._http_settings())))

    def score(
        self,
        items: Iterable[p.ItemLike],
        *,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        truncation: Truncation | None = None,
    ) -> ScoreResult:
        """Scores each item, in chunks; a chunk that fails fails the call.

        An item that cannot be scored is a `ScoreFailure` in its place, and stays one even if it is retryable:
        whether a second try is worth it is for the caller to say.

        Args:
            items: `Item`s, mappings in wire form, or tuples `(prompt, completion)` and
                `(prompt, completion, finish_reason)`; "length" says that the completion was cut off.
            model: signal or blend to score by; the server's default if neither this nor `weights` is given.
            weights: signal -> weight, instead of a model.
            truncation: "error" or "prompt_left"; the server's default if None.

        Raises:
            FingerprintChanged: chunks were scored by different models.
        """
        calls = p.score_calls(items, p.options(model, weights, truncation), self.chunk_size)
        return merge_scores(self._run_all(calls))

    def rank(
        self,
        prompt: Prompt,
        completions: Sequence[p.CompletionLike],
        *,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        top_n: int | None = None,
    ) -> RankResult:
        """Orders completions of one prompt, best first. One request, however many completions."""
        return self._run_one(p.rank_call(prompt, completions, p.options(model, weights, top_n=top_n)))

    def compare(self, prompt: Prompt, a: str, b: str, *, model: str | None = None) -> Comparison:
        """Compare two completions of one prompt under every signal and blend, or under `model` alone."""
        return self._run_one(p.compare_call(prompt, a, b, p.options(model)))

    def render(
        self, items: Iterable[p.ItemLike], *, model: str | None = None, truncation: Truncation | None = None
    ) -> RenderResult:
        """Return what every signal, or those of `model`, read of each item: text, ids, and where the score is read.

        Raises as `score` does.
        """
        calls = p.render_calls(items, p.options(model, truncation=truncation), self.chunk_size)
        return merge_renders(self._run_all(calls))

    def models(self) -> tuple[ModelCard, ...]:
        """The signals and blends that are served."""
        return self._run_one(p.MODELS)

    def info(self) -> Mapping[str, object]:
        """What the service says about itself."""
        return self._run_one(p.INFO)

    def ready(self) -> bool:
        """True if the service would score now, False if not or if it is not there; one try."""
        http = self._here().http
        return is_ready(self._try(http, self._request(p.READY, http), self._policy.timeout_s))

    def close(self) -> None:
        """Stops calls that run in other threads and closes the connections of this process."""
        if self._is_elsewhere():
            return
        here = self._here()
        for stop in list(here.running):
            stop.set()
        here.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_one(self, call: p.Call[T]) -> T:
        return self._run_all([call])[0]

    def _run_all(self, calls: Sequence[p.Call[T]]) -> list[T]:
        deadline_at_s = self._deadline_at_s()
        here, stop = self._here(), threading.Event()
        here.running.add(stop)
        pool = ThreadPoolExecutor(self.max_concurrency, "assay-client")
        try:
            if len(calls) == 1:
                return [self._run(here.http, calls[0], deadline_at_s, stop)]
            futures = [pool.submit(self._run, here.http, call, deadline_at_s, stop) for call in calls]
            # Asking them in order would hide a failure behind a slow chunk.
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in futures]
        finally:
            # After a failure: wake the sleepers, and do not wait for tries in flight; nobody reads them.
            stop.set()
            here.running.discard(stop)
            pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, http: httpx.Client, call: p.Call[T], deadline_at_s: float, stop: threading.Event) -> T:
        request = self._request(call, http)
        steps = self._steps(call, request, deadline_at_s)
        step = next(steps)
        while not isinstance(step, Done):
            if stop.is_set():
                raise TransportError("stopped: the client was closed, or another chunk failed")
            outcome = None
            if isinstance(step, Send):
                outcome = self._try(http, request, step.timeout_s)
            else:
                self._clock.sleep(step.delay_s, stop)
            step = steps.send(self._event(outcome))
        return step.value

    def _try(self, http: httpx.Client, request: httpx.Request, timeout_s: float) -> Reply | TransportError:
        until_s = self._clock.now_s() + timeout_s
        request.extensions["timeout"] = httpx.Timeout(timeout_s).as_dict()
        try:
            response = http.send(request, stream=True)
            try:
                check_answers(request, response)  # before the body is read, so that the connection is not used again
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    # httpx limits each wait for the socket; an answer that drips could last for ever.
                    if self._clock.now_s() > until_s:
                        return Timeout(f"the answer was not whole after {timeout_s:g} s")
                return Reply(response.status_code, response.headers, bytes(body))
            finally:
                response.close()
        except httpx.RequestError as error:
            return transport_error(error, request)


class AsyncRewardClient(BaseClient[Loops, httpx.AsyncBaseTransport]):
    """`RewardClient` for asyncio; the methods are the same. A call that is cancelled stops its requests.

    May be used in one event loop after another, in several at once, and in forked processes: each loop has connections
    of its own, which are closed when the client is closed in it, or when `asyncio.run` ends it.
    """

    async def _here(self) -> httpx.AsyncClient:
        """Return the connections of the running loop."""
        loop, loops = asyncio.get_running_loop(), self._mine(dict)
        if loop not in loops:
            for ended in [one for one in list(loops) if one.is_closed()]:
                loops.pop(ended, None)  # another thread may have been here
            http = httpx.AsyncClient(**self._http_settings())
            loops[loop] = http, close_at_end(http)
            await anext(loops[loop][1])
        return loops[loop][0]

    async def score(
        self,
        items: Iterable[p.ItemLike],
        *,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        truncation: Truncation | None = None,
    ) -> ScoreResult:
        """Scores each item, in chunks; see `RewardClient.score`."""
        calls = p.score_calls(items, p.options(model, weights, truncation), self.chunk_size)
        return merge_scores(await self._run_all(calls))

    async def rank(
        self,
        prompt: Prompt,
        completions: Sequence[p.CompletionLike],
        *,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        top_n: int | None = None,
    ) -> RankResult:
        """Orders completions of one prompt, best first. One request, however many completions."""
        call = p.rank_call(prompt, completions, p.options(model, weights, top_n=top_n))
        return await self._run(call, self._deadline_at_s())

    async def compare(self, prompt: Prompt, a: str, b: str, *, model: str | None = None) -> Comparison:
        """Compare two completions of one prompt under every signal and blend, or under `model` alone."""
        return await self._run(p.compare_call(prompt, a, b, p.options(model)), self._deadline_at_s())

    async def render(
        self, items: Iterable[p.ItemLike], *, model: str | None = None, truncation: Truncation | None = None
    ) -> RenderResult:
        """Return what signals read of each item; see `RewardClient.render`."""
        calls = p.render_calls(items, p.options(model, truncation=truncation), self.chunk_size)
        return merge_renders(await self._run_all(calls))

    async def models(self) -> tuple[ModelCard, ...]:
        """The signals and blends that are served."""
        return await self._run(p.MODELS, self._deadline_at_s())

    async def info(self) -> Mapping[str, object]:
        """What the service says about itself."""
        return await self._run(p.INFO, self._deadline_at_s())

    async def ready(self) -> bool:
        """True if the service would score now, False if not or if it is not there; one try."""
        http = await self._here()
        return is_ready(await self._try(http, self._request(p.READY, http), self._policy.timeout_s))

    async def close(self) -> None:
        """Closes the connections of the running event loop."""
        if self._is_elsewhere():
            return
        await self._here()
        await self._mine(dict)[asyncio.get_running_loop()][1].aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run_all(self, calls: Sequence[p.Call[T]]) -> list[T]:
        deadline_at_s = self._deadline_at_s()
        waiting = iter(enumerate(calls))
        answers: dict[int, T] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.max_concurrency, len(calls))):
                    group.create_task(self._work(waiting, answers, deadline_at_s))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [answers[n] for n in range(len(calls))]

    async def _work(
        self, waiting: Iterator[tuple[int, p.Call[T]]], answers: dict[int, T], deadline_at_s: float
    ) -> None:
        for n, call in waiting:
            answers[n] = await self._run(call, deadline_at_s)

    async def _run(self, call: p.Call[T], deadline_at_s: float) -> T:
        http = await self._here()
        request = self._request(call, http)
        steps = self._steps(call, request, deadline_at_s)
        step = next(steps)
        while not isinstance(step, Done):
            outcome = None
            if isinstance(step, Send):
                outcome = await self._try(http, request, step.timeout_s)
            else:
                await self._clock.async_sleep(step.delay_s)
            step = steps.send(self._event(outcome))
        return step.value

    async def _try(self, http: httpx.AsyncClient, request: httpx.Request, timeout_s: float) -> Reply | TransportError:
        request.extensions["timeout"] = httpx.Timeout(None).as_dict()
        try:
            # Around the whole try, so that it also holds for transports that know no time, as ASGI's.
            async with asyncio.timeout(timeout_s):
                response = await http.send(request, stream=True)
                try:
                    check_answers(request, response)  # before the body is read, as in `RewardClient`
                    return Reply(response.status_code, response.headers, await response.aread())
                finally:
                    await response.aclose()
        except TimeoutError:
            return Timeout(f"no whole answer after {timeout_s:g} s")
        except httpx.RequestError as error:
            return transport_error(error, request)
