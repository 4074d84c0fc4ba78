"""Score completions over HTTP within asyncio: `AsyncRewardClient`."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Self, TypeVar

import httpx

from assay_client import _protocol as p
from assay_client._answers import Answered, merge_rank, merge_renders, merge_scores
from assay_client._base_client import CONNECT_S, BaseClient, Outcome, check_request_id, convert_error, is_ready
from assay_client._connections import Loop, Loops, close_at_end, hold_slot_async
from assay_client._raw_answer import RawAnswer
from assay_client._retry import Done, Send
from assay_client.errors import InvalidAnswer, Timeout
from assay_client.messages import Prompt
from assay_client.results import Comparison, ModelCard, RankResult, RenderResult
from assay_client.types import ScoreResult, Truncation

T = TypeVar("T")


class AsyncRewardClient(BaseClient[Loops, httpx.AsyncBaseTransport]):
    """A `RewardClient` for asyncio, with the same methods. A call that is cancelled stops its requests.

    It may be used in one event loop after another, in several at once, and in forked processes. Each loop has
    connections of its own. They are closed when the client is closed in that loop, or when `asyncio.run` ends it.
    """

    async def _get_connections(self) -> Loop:
        """Return the connections of the running loop."""
        loop, loops = asyncio.get_running_loop(), self._get_state(dict)
        if loop not in loops:
            for ended in [known for known in list(loops) if known.is_closed()]:
                loops.pop(ended, None)  # another thread may have removed it already
            http = httpx.AsyncClient(**self._build_http_settings())
            loops[loop] = Loop(http, asyncio.Semaphore(self.max_concurrency), close_at_end(http))
            await anext(loops[loop].closing)  # started, because a loop closes only generators that have run
        return loops[loop]

    async def score(
        self,
        items: Iterable[p.ItemLike],
        *,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        truncation: Truncation | None = None,
        tokenizer_sha256: str | None = None,
    ) -> ScoreResult:
        """Score each item, in chunks; see `RewardClient.score`."""
        options = p.build_options(model, weights, truncation, tokenizer_sha256=tokenizer_sha256)
        calls = p.build_score_calls(items, options, self.chunk_size, self._get_find_home())
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
        return merge_rank(await self._run(call, self._compute_deadline_s()))

    async def compare(self, prompt: Prompt, a: str, b: str, *, model: str | None = None) -> Comparison:
        """Compare two completions of one prompt; see `RewardClient.compare`."""
        call = p.build_compare_call(prompt, a, b, p.build_options(model))
        return (await self._run(call, self._compute_deadline_s())).value

    async def render(
        self,
        items: Iterable[p.ItemLike],
        *,
        model: str | None = None,
        truncation: Truncation | None = None,
        tokenizer_sha256: str | None = None,
    ) -> RenderResult:
        """Return how signals read each item; see `RewardClient.render`."""
        options = p.build_options(model, truncation=truncation, tokenizer_sha256=tokenizer_sha256)
        calls = p.build_render_calls(items, options, self.chunk_size, self._get_find_home())
        return merge_renders(await self._run_all(calls))

    async def models(self) -> tuple[ModelCard, ...]:
        """Return the signals and blends that are served."""
        return (await self._run(p.MODELS, self._compute_deadline_s())).value

    async def info(self) -> Mapping[str, object]:
        """Return the service's description of itself, the JSON object of `/info`."""
        return (await self._run(p.INFO, self._compute_deadline_s())).value

    async def ready(self) -> bool:
        """Return whether an endpoint would score now; see `RewardClient.ready`."""
        http, outgoing = (await self._get_connections()).http, self._encode(p.READY)
        for url in self.endpoints:
            request = outgoing.build(url, http, self._policy.timeout_s)
            outcome = await self._try(http, request, self._policy.timeout_s)
            if is_ready(outcome, self._redaction):
                return True
        return False

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        if self._is_elsewhere():
            return
        await (await self._get_connections()).closing.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run_all(self, calls: Sequence[p.Call[T]]) -> list[Answered[T]]:
        deadline_at_s = self._compute_deadline_s()
        waiting = iter(enumerate(calls))
        answers: dict[int, Answered[T]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.max_concurrency, len(calls))):
                    group.create_task(self._work(waiting, answers, deadline_at_s))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None  # callers catch errors of the client, not groups of them
        return [answers[n] for n in range(len(calls))]

    async def _work(
        self, waiting: Iterator[tuple[int, p.Call[T]]], answers: dict[int, Answered[T]], deadline_at_s: float
    ) -> None:
        for n, call in waiting:
            answers[n] = await self._run(call, deadline_at_s)

    async def _run(self, call: p.Call[T], deadline_at_s: float) -> Answered[T]:
        here, outgoing = await self._get_connections(), self._encode(call)
        within_s = deadline_at_s - self._clock.get_now_s()
        # Requests without a body are not limited, as in `RewardClient`.
        async with nullcontext() if outgoing.body is None else hold_slot_async(here.slots, within_s):
            steps = self._start_steps(call, outgoing, deadline_at_s)
            step = next(steps)
            while not isinstance(step, Done):
                outcome = None
                if isinstance(step, Send):
                    request = outgoing.build(step.endpoint, here.http, step.timeout_s)
                    outcome = await self._try(here.http, request, step.timeout_s)
                else:
                    await self._clock.sleep_async(step.delay_s)
                step = steps.send(self._build_event(outcome))
        return Answered(step.value, outgoing.request_id, step.endpoint)

    async def _try(self, http: httpx.AsyncClient, request: httpx.Request, timeout_s: float) -> Outcome:
        # `asyncio.timeout` limits the try; only a connection has a limit of its own.
        request.extensions["timeout"] = httpx.Timeout(None, connect=min(timeout_s, CONNECT_S)).as_dict()
        try:
            # Around the whole try, so that it also holds for transports without a timeout, such as httpx.ASGITransport.
            async with asyncio.timeout(timeout_s):
                response = await http.send(request, stream=True)
                try:
                    # Before the body is read, as in `RewardClient`.
                    check_request_id(request, response, self._redaction)
                    return RawAnswer(response.status_code, response.headers, await response.aread())
                finally:
                    await response.aclose()
        except TimeoutError:
            return Timeout(f"the answer was not complete after {timeout_s:g} s")
        except InvalidAnswer as error:
            return error
        except httpx.RequestError as error:
            return convert_error(error, request, self._redaction)
