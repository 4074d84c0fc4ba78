"""Score completions over HTTP: `RewardClient`, for threads and processes, and `AsyncRewardClient`, for asyncio.

`_protocol` builds requests, `_answers` reads answers, and `_retry` decides when and where to try again.
"""

import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import Self, TypeVar

import httpx

from assay_client import _protocol as p
from assay_client._answers import Answered, merge_rank, merge_renders, merge_scores
from assay_client._base_client import CONNECT_S, BaseClient, Outcome, check_request_id, convert_error, is_ready
from assay_client._connections import Process, close_own, hold_slot
from assay_client._raw_answer import RawAnswer
from assay_client._retry import Done, Send
from assay_client.async_client import AsyncRewardClient
from assay_client.errors import InvalidAnswer, Timeout, TransportError
from assay_client.messages import Prompt
from assay_client.results import Comparison, ModelCard, RankResult, RenderResult
from assay_client.types import ScoreResult, Truncation

__all__ = ["AsyncRewardClient", "RewardClient"]

T = TypeVar("T")


class RewardClient(BaseClient[Process, httpx.BaseTransport]):
    """A client that scores completions over HTTP; several threads and forked processes may use it at once."""

    def _get_connections(self) -> Process:
        """Return the connections of this process."""
        return self._get_state(self._open)

    def _open(self) -> Process:
        if self._transport is None:
            # For a client that nobody closes; a transport that was given belongs to its giver.
            weakref.finalize(self, close_own, self._by_pid)
        return Process(httpx.Client(**self._build_http_settings()), threading.Semaphore(self.max_concurrency))

    def score(
        self,
        items: Iterable[p.ItemLike],
        *,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        truncation: Truncation | None = None,
        tokenizer_sha256: str | None = None,
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
            tokenizer_sha256: the hash of the `tokenizer.json` that gave the token ids; items with `prompt_ids` need it.

        Raises:
            FingerprintChanged: chunks were scored by different models.
        """
        options = p.build_options(model, weights, truncation, tokenizer_sha256=tokenizer_sha256)
        calls = p.build_score_calls(items, options, self.chunk_size, self._get_find_home())
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
        call = p.build_rank_call(prompt, completions, p.build_options(model, weights, top_n=top_n))
        return merge_rank(self._run_one(call))

    def compare(self, prompt: Prompt, a: str, b: str, *, model: str | None = None) -> Comparison:
        """Compare two completions under every signal and blend, or under `model` alone; margins > 0 favor `a`."""
        return self._run_one(p.build_compare_call(prompt, a, b, p.build_options(model))).value

    def render(
        self,
        items: Iterable[p.ItemLike],
        *,
        model: str | None = None,
        truncation: Truncation | None = None,
        tokenizer_sha256: str | None = None,
    ) -> RenderResult:
        """Return how every signal, or those of `model`, reads each item: its text, token ids and score position.

        The arguments and errors are those of `score`; no fingerprint is compared.
        """
        options = p.build_options(model, truncation=truncation, tokenizer_sha256=tokenizer_sha256)
        calls = p.build_render_calls(items, options, self.chunk_size, self._get_find_home())
        return merge_renders(self._run_all(calls))

    def models(self) -> tuple[ModelCard, ...]:
        """Return the signals and blends that are served."""
        return self._run_one(p.MODELS).value

    def info(self) -> Mapping[str, object]:
        """Return the service's description of itself, the JSON object of `/info`."""
        return self._run_one(p.INFO).value

    def ready(self) -> bool:
        """Return whether an endpoint would score now, by one try at each; False also if none can be reached."""
        http, outgoing = self._get_connections().http, self._encode(p.READY)
        timeout_s = self._policy.timeout_s
        tries = (self._try(http, outgoing.build(url, http, timeout_s), timeout_s) for url in self.endpoints)
        return any(is_ready(outcome, self._redaction) for outcome in tries)

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

    def _run_one(self, call: p.Call[T]) -> Answered[T]:
        return self._run_all([call])[0]

    def _run_all(self, calls: Sequence[p.Call[T]]) -> list[Answered[T]]:
        deadline_at_s = self._compute_deadline_s()
        here, stop = self._get_connections(), threading.Event()
        here.running.add(stop)
        pool = ThreadPoolExecutor(self.max_concurrency, "assay-client")
        try:
            if len(calls) == 1:
                return [self._run(here, calls[0], deadline_at_s, stop)]
            futures = [pool.submit(self._run, here, call, deadline_at_s, stop) for call in calls]
            # Waiting for them in order would hide a failure behind a slow chunk.
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in futures]
        finally:
            # After a failure: wake the threads that wait for a retry. Tries in flight are abandoned; nobody reads them.
            stop.set()
            here.running.discard(stop)
            pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, here: Process, call: p.Call[T], deadline_at_s: float, stop: threading.Event) -> Answered[T]:
        outgoing = self._encode(call)
        # Requests without a body need no model, and must pass while scoring takes long: `info` is a sign of life.
        within_s = deadline_at_s - self._clock.get_now_s()
        with nullcontext() if outgoing.body is None else hold_slot(here.slots, within_s):
            steps = self._start_steps(call, outgoing, deadline_at_s)
            step = next(steps)
            while not isinstance(step, Done):
                if stop.is_set():
                    stopped = TransportError("stopped, because the client was closed or another chunk failed")
                    stopped.request_id = outgoing.request_id
                    raise stopped
                outcome = None
                if isinstance(step, Send):
                    request = outgoing.build(step.endpoint, here.http, step.timeout_s)
                    outcome = self._try(here.http, request, step.timeout_s)
                else:
                    self._clock.sleep(step.delay_s, stop)
                step = steps.send(self._build_event(outcome))
        return Answered(step.value, outgoing.request_id, step.endpoint)

    def _try(self, http: httpx.Client, request: httpx.Request, timeout_s: float) -> Outcome:
        until_s = self._clock.get_now_s() + timeout_s
        request.extensions["timeout"] = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S)).as_dict()
        try:
            response = http.send(request, stream=True)
            try:
                # Before the body is read, so that the connection is not reused.
                check_request_id(request, response, self._redaction)
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    # httpx limits each wait for the socket; an answer that arrives byte by byte could last for ever.
                    if self._clock.get_now_s() > until_s:
                        return Timeout(f"the answer was not complete after {timeout_s:g} s")
                return RawAnswer(response.status_code, response.headers, bytes(body))
            finally:
                response.close()
        except InvalidAnswer as error:
            return error
        except httpx.RequestError as error:
            return convert_error(error, request, self._redaction)
