"""Send requests to the service: `RewardClient` and `AsyncRewardClient` own the sockets and the concurrency.

`_protocol` builds requests, `_answers` reads answers, and `_retry` decides when to try again.
"""

import asyncio
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Self, TypeVar

import httpx

from assay_client import _protocol as p
from assay_client._answers import merge_renders, merge_scores
from assay_client._base_client import BaseClient, check_request_id, convert_error, is_ready
from assay_client._connections import Loops, Process, close_at_end
from assay_client._retry import Done, Reply, Send
from assay_client.errors import Timeout, TransportError
from assay_client.results import Comparison, ModelCard, RankResult, RenderResult
from assay_client.types import Prompt, ScoreResult, Truncation

T = TypeVar("T")


class RewardClient(BaseClient[Process, httpx.BaseTransport]):
    """A client that scores completions over HTTP; several threads and forked processes may use it at once."""

    def _get_connections(self) -> Process:
        return self._get_state(lambda: Process(httpx.Client(**self._build_http_settings())))

    def score(
        self,
        items: Iterable[p.ItemLike],
        *,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        truncation: Truncation | None = None,
    ) -> ScoreResult:
        """Score each item, in chunks; a chunk that fails makes the whole call fail.

        An item that cannot be scored is a `ScoreFailure` in its place. It is not sent again even if it is retryable:
        the caller decides whether a second try is worth it.

        Args:
            items: `Item`s, mappings in wire form, or tuples `(prompt, completion)` and
                `(prompt, completion, finish_reason)`; "length" means that the completion was cut off.
            model: the signal or blend to score by; the server's default if neither this nor `weights` is given.
            weights: the weight of each signal by name, instead of a model.
            truncation: "error" or "prompt_left"; the server's default if None.

        Raises:
            FingerprintChanged: chunks were scored by different models.
        """
        calls = p.build_score_calls(items, p.build_options(model, weights, truncation), self.chunk_size)
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
        """Rank completions of one prompt, best first, in one request; `model` and `weights` are as in `score`.

        A completion is text, or a mapping with `completion` and optionally `finish_reason` and `id`. The ranking has
        at most `top_n` completions.
        """
        return self._run_one(p.build_rank_call(prompt, completions, p.build_options(model, weights, top_n=top_n)))

    def compare(self, prompt: Prompt, a: str, b: str, *, model: str | None = None) -> Comparison:
        """Compare two completions under every signal and blend, or under `model` alone; margins > 0 favour `a`."""
        return self._run_one(p.build_compare_call(prompt, a, b, p.build_options(model)))

    def render(
        self, items: Iterable[p.ItemLike], *, model: str | None = None, truncation: Truncation | None = None
    ) -> RenderResult:
        """Return how every signal, or those of `model`, reads each item: its text, token ids and score position.

        The arguments and errors are those of `score`; no fingerprint is compared.
        """
        calls = p.build_render_calls(items, p.build_options(model, truncation=truncation), self.chunk_size)
        return merge_renders(self._run_all(calls))

    def models(self) -> tuple[ModelCard, ...]:
        """Return the signals and blends that are served."""
        return self._run_one(p.MODELS)

    def info(self) -> Mapping[str, object]:
        """Return the service's description of itself, the JSON object of `/info`."""
        return self._run_one(p.INFO)

    def ready(self) -> bool:
        """Return whether the service would score now, by one try; False also if it cannot be reached."""
        http = self._get_connections().http
        return is_ready(self._try(http, self._build_request(p.READY, http), self._policy.timeout_s))

    def close(self) -> None:
        """Stop calls that run in other threads, and close the connections of this process."""
        if self._is_elsewhere():
            return
        here = self._get_connections()
        for stop in list(here.running):  # a copy, because a call that ends meanwhile removes its own
            stop.set()
        here.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_one(self, call: p.Call[T]) -> T:
        return self._run_all([call])[0]

    def _run_all(self, calls: Sequence[p.Call[T]]) -> list[T]:
        deadline_at_s = self._compute_deadline_s()
        here, stop = self._get_connections(), threading.Event()
        here.running.add(stop)
        pool = ThreadPoolExecutor(self.max_concurrency, "assay-client")
        try:
            if len(calls) == 1:
                return [self._run(here.http, calls[0], deadline_at_s, stop)]
            futures = [pool.submit(self._run, here.http, call, deadline_at_s, stop) for call in calls]
            # Waiting for them in order would hide a failure behind a slow chunk.
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in futures]
        finally:
            # After a failure: wake the threads that wait for a retry. Tries in flight are abandoned; nobody reads them.
            stop.set()
            here.running.discard(stop)
            pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, http: httpx.Client, call: p.Call[T], deadline_at_s: float, stop: threading.Event) -> T:
        request = self._build_request(call, http)
        steps = self._start_steps(call, request, deadline_at_s)
        step = next(steps)
        while not isinstance(step, Done):
            if stop.is_set():
                raise TransportError("stopped, because the client was closed or another chunk failed")
            outcome = None
            if isinstance(step, Send):
                outcome = self._try(http, request, step.timeout_s)
            else:
                self._clock.sleep(step.delay_s, stop)
            step = steps.send(self._build_event(outcome))
        return step.value

    def _try(self, http: httpx.Client, request: httpx.Request, timeout_s: float) -> Reply | TransportError:
        until_s = self._clock.get_now_s() + timeout_s
        request.extensions["timeout"] = httpx.Timeout(timeout_s).as_dict()
        try:
            response = http.send(request, stream=True)
            try:
                check_request_id(request, response)  # before the body is read, so that the connection is not reused
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    # httpx limits each wait for the socket; an answer that arrives byte by byte could last for ever.
                    if self._clock.get_now_s() > until_s:
                        return Timeout(f"the answer was not complete after {timeout_s:g} s")
                return Reply(response.status_code, response.headers, bytes(body))
            finally:
                response.close()
        except httpx.RequestError as error:
            return convert_error(error, request)


class AsyncRewardClient(BaseClient[Loops, httpx.AsyncBaseTransport]):
    """A `RewardClient` for asyncio, with the same methods. A call that is cancelled stops its requests.

    It may be used in one event loop after another, in several at once, and in forked processes. Each loop has
    connections of its own. They are closed when the client is closed in that loop, or when `asyncio.run` ends it.
    """

    async def _get_connections(self) -> httpx.AsyncClient:
        """Return the connections of the running loop."""
        loop, loops = asyncio.get_running_loop(), self._get_state(dict)
        if loop not in loops:
            for ended in [known for known in list(loops) if known.is_closed()]:
                loops.pop(ended, None)  # another thread may have removed it already
            http = httpx.AsyncClient(**self._build_http_settings())
            loops[loop] = http, close_at_end(http)
            await anext(loops[loop][1])  # started, because a loop closes only generators that have run
        return loops[loop][0]

    async def score(
        self,
        items: Iterable[p.ItemLike],
        *,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        truncation: Truncation | None = None,
    ) -> ScoreResult:
        """Score each item, in chunks; see `RewardClient.score`."""
        calls = p.build_score_calls(items, p.build_options(model, weights, truncation), self.chunk_size)
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
        """Rank completions of one prompt, best first; see `RewardClient.rank`."""
        call = p.build_rank_call(prompt, completions, p.build_options(model, weights, top_n=top_n))
        return await self._run(call, self._compute_deadline_s())

    async def compare(self, prompt: Prompt, a: str, b: str, *, model: str | None = None) -> Comparison:
        """Compare two completions of one prompt; see `RewardClient.compare`."""
        return await self._run(p.build_compare_call(prompt, a, b, p.build_options(model)), self._compute_deadline_s())

    async def render(
        self, items: Iterable[p.ItemLike], *, model: str | None = None, truncation: Truncation | None = None
    ) -> RenderResult:
        """Return how signals read each item; see `RewardClient.render`."""
        calls = p.build_render_calls(items, p.build_options(model, truncation=truncation), self.chunk_size)
        return merge_renders(await self._run_all(calls))

    async def models(self) -> tuple[ModelCard, ...]:
        """Return the signals and blends that are served."""
        return await self._run(p.MODELS, self._compute_deadline_s())

    async def info(self) -> Mapping[str, object]:
        """Return the service's description of itself, the JSON object of `/info`."""
        return await self._run(p.INFO, self._compute_deadline_s())

    async def ready(self) -> bool:
        """Return whether the service would score now; see `RewardClient.ready`."""
        http = await self._get_connections()
        return is_ready(await self._try(http, self._build_request(p.READY, http), self._policy.timeout_s))

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        if self._is_elsewhere():
            return
        await self._get_connections()
        await self._get_state(dict)[asyncio.get_running_loop()][1].aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run_all(self, calls: Sequence[p.Call[T]]) -> list[T]:
        deadline_at_s = self._compute_deadline_s()
        waiting = iter(enumerate(calls))
        answers: dict[int, T] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.max_concurrency, len(calls))):
                    group.create_task(self._work(waiting, answers, deadline_at_s))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None  # callers catch errors of the client, not groups of them
        return [answers[n] for n in range(len(calls))]

    async def _work(
        self, waiting: Iterator[tuple[int, p.Call[T]]], answers: dict[int, T], deadline_at_s: float
    ) -> None:
        for n, call in waiting:
            answers[n] = await self._run(call, deadline_at_s)

    async def _run(self, call: p.Call[T], deadline_at_s: float) -> T:
        http = await self._get_connections()
        request = self._build_request(call, http)
        steps = self._start_steps(call, request, deadline_at_s)
        step = next(steps)
        while not isinstance(step, Done):
            outcome = None
            if isinstance(step, Send):
                outcome = await self._try(http, request, step.timeout_s)
            else:
                await self._clock.sleep_async(step.delay_s)
            step = steps.send(self._build_event(outcome))
        return step.value

    async def _try(self, http: httpx.AsyncClient, request: httpx.Request, timeout_s: float) -> Reply | TransportError:
        request.extensions["timeout"] = httpx.Timeout(None).as_dict()  # `asyncio.timeout` limits the try instead
        try:
            # Around the whole try, so that it also holds for transports without a timeout, such as httpx.ASGITransport.
            async with asyncio.timeout(timeout_s):
                response = await http.send(request, stream=True)
                try:
                    check_request_id(request, response)  # before the body is read, as in `RewardClient`
                    return Reply(response.status_code, response.headers, await response.aread())
                finally:
                    await response.aclose()
        except TimeoutError:
            return Timeout(f"the answer was not complete after {timeout_s:g} s")
        except httpx.RequestError as error:
            return convert_error(error, request)
