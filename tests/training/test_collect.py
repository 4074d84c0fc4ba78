"""A rollout: what is scored while what is generated, and what is left undone once scoring has failed."""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
import pytest

from assay_client.client import RewardClient
from assay_service.scoring.item import Message
from assay_training.config.rollout import Reward
from assay_training.records.record import Prompt
from assay_training.rollout import collect
from assay_training.rollout.collect import Collector
from assay_training.rollout.completion import Completion, Ids
from assay_training.rollout.prompts import TokenizedPrompt
from assay_training.rollout.rewards import CompletionScore, RewardError, Rewards
from tests.client.conftest import Wire

LONG_S = 2  # nothing here takes so long, unless something waits for what never comes
CHUNK = 2


class SteppedEngine:
    """An engine that calls a function before each chunk, and counts the chunks."""

    def __init__(self, before: Callable[[int], object]) -> None:
        self.chunks, self._before = 0, before

    def push(self, adapter: Path) -> None: ...

    def close(self) -> None: ...

    def generate(self, prompts: Sequence[Ids], seed: int) -> list[Completion]:
        self.chunks += 1
        self._before(self.chunks)
        return [Completion(ids, (7,), (-0.5,), "stop") for ids in prompts]


def asked(count: int) -> list[TokenizedPrompt]:
    return [TokenizedPrompt(Prompt("source", str(i), (Message("user", f"{i}"),)), (i + 1,)) for i in range(count)]


def roll_out(engine: SteppedEngine, rewards: Rewards, chunks: int) -> collect.Rollout:
    return Collector(engine, lambda _: "text", CHUNK).collect(asked(chunks * CHUNK), rewards, "seed")


def row(index: int, error: str | None) -> dict[str, Any]:
    signal = {
        "logit": 2.0,
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "truncated_tokens": 0,
        "dropped_tokens": 0,
        "control_tokens_as_text": 0,
    }
    if error is None:
        return {"index": index, "score": 2.0, "signals": {"s": signal}}
    body = {"code": error, "message": "it is", "param": None, "retryable": error in ("forward_failed", "overloaded")}
    return {"index": index, "error": body}


class Service:
    """Answers call by call; an item's error is what `errors` has for the call and the item's text."""

    def __init__(
        self, errors: Callable[[int, str], str | None] = lambda *_: None, fingerprints: Sequence[str] = "f"
    ) -> None:
        self.calls: list[list[str]] = []
        self._errors, self._fingerprints = errors, fingerprints

    def rewards(self, **reward: Any) -> Rewards:
        client = RewardClient("http://assay.test", transport=httpx.MockTransport(self.answer))
        return Rewards(client, Reward(model="s", **reward), None, pause_s=0)

    def answer(self, request: httpx.Request) -> httpx.Response:
        items = [item["prompt"][0]["content"] for item in json.loads(request.content)["items"]]
        self.calls.append(items)
        number = len(self.calls)
        data = [row(i, self._errors(number, item)) for i, item in enumerate(items)]
        fingerprint = self._fingerprints[min(number, len(self._fingerprints)) - 1]
        provenance: dict[str, Any] = {"blend": None, "signals": {}, "fingerprint": fingerprint}
        answer = {"object": "list", "data": data, "model": "s", "provenance": provenance}
        return Wire.answer(request, json=answer)


def test_a_chunk_is_scored_while_the_next_is_generated() -> None:
    """The engine is held in its second chunk until the service has begun, and the service until the engine has."""
    scoring, generating = threading.Event(), threading.Event()
    seen = []

    def before(chunk: int) -> None:
        if chunk == 2:
            seen.append(scoring.wait(LONG_S))
            generating.set()

    def errors(call: int, _: str) -> None:
        if call == 1:
            scoring.set()
            seen.append(generating.wait(LONG_S))

    rollout = roll_out(SteppedEngine(before), Service(errors).rewards(), chunks=2)
    assert set(seen) == {True}
    assert [sample.prompt.ids for sample in rollout.samples] == [(1,), (2,), (3,), (4,)]
    assert [sample.score for sample in rollout.samples] == [CompletionScore(2.0, {"s": 2.0})] * 4


def test_a_failure_is_noticed_before_another_chunk_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of 48 chunks cannot be scored; the engine ends the second when that is known."""
    calls: list[Future[Any]] = []

    class Known(ThreadPoolExecutor):
        def submit(self, *arguments: Any, **named: Any) -> Any:
            calls.append(super().submit(*arguments, **named))
            return calls[-1]

    monkeypatch.setattr(collect, "ThreadPoolExecutor", Known)
    service, engine = Service(lambda *_: "too_long"), SteppedEngine(lambda _: wait(calls, LONG_S))
    with pytest.raises(RewardError, match="too_long"):
        roll_out(engine, service.rewards(), chunks=48)
    assert engine.chunks <= 2  # 1 if the call was faster than the loop
    assert len(service.calls) == 1


def test_after_a_failed_call_none_that_waits_is_made() -> None:
    """All chunks are generated before the first call comes back."""
    generated = threading.Event()

    def errors(*_: object) -> str:
        generated.wait(LONG_S)
        return "too_long"

    service = Service(errors)
    engine = SteppedEngine(lambda chunk: generated.set() if chunk == 8 else None)
    with pytest.raises(RewardError, match="too_long"):
        roll_out(engine, service.rewards(), chunks=8)
    assert len(service.calls) == 1


def test_an_interrupted_rollout_waits_for_no_call() -> None:
    """Ctrl-C while the first call is under way and others wait."""
    calling, ended = threading.Event(), threading.Event()

    def errors(*_: object) -> None:
        calling.set()
        ended.wait(LONG_S)

    def before(chunk: int) -> None:
        if chunk == 4:
            assert calling.wait(LONG_S)
            raise KeyboardInterrupt

    service = Service(errors)
    rewards = service.rewards()
    threads = []
    score = rewards.score

    def observed(items: Any) -> Any:
        threads.append(threading.current_thread())
        return score(items)

    rewards.score = observed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        roll_out(SteppedEngine(before), rewards, chunks=48)
    assert not ended.is_set()
    assert threads[0].is_alive()
    ended.set()
    threads[0].join(LONG_S)
    assert len(service.calls) == 1


def test_only_retryable_items_are_sent_again() -> None:
    """One item fails twice, one for good: the run drops that one only."""

    def errors(call: int, item: str) -> str | None:
        return "too_long" if item == "2" else "forward_failed" if item == "0" and call < 3 else None

    service = Service(errors)
    rewards = service.rewards(failed="drop")
    rollout = Collector(SteppedEngine(lambda _: None), lambda _: "text", 4).collect(asked(4), rewards, "seed")
    assert service.calls == [["0", "1", "2", "3"], ["0"], ["0"]]
    assert [sample.prompt.ids for sample in rollout.samples] == [(1,), (2,), (4,)]
    assert rollout.dropped == {"too_long": 1}


@pytest.mark.parametrize("failed", ["drop", "stop"])
def test_an_item_that_never_succeeds_is_sent_again_three_times(failed: str) -> None:
    service = Service(lambda _, item: "overloaded" if item == "1" else None)
    if failed == "drop":
        assert roll_out(SteppedEngine(lambda _: None), service.rewards(failed=failed), chunks=1).dropped == {
            "overloaded": 1
        }
    else:
        with pytest.raises(RewardError, match="could not score a completion: overloaded"):
            roll_out(SteppedEngine(lambda _: None), service.rewards(failed=failed), chunks=1)
    assert service.calls == [["0", "1"], ["1"], ["1"], ["1"]]


def test_a_service_that_has_changed_by_the_second_try_stops_the_run() -> None:
    service = Service(lambda call, item: "forward_failed" if call == 1 else None, "fg")
    with pytest.raises(RewardError, match="the service's fingerprint is g now, and was f before"):
        roll_out(SteppedEngine(lambda _: None), service.rewards(), chunks=1)


@pytest.mark.parametrize("there", ["f", "g"])
def test_processes_with_scores_of_different_models_stop(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads stand for two processes, each with a service of its own; what one gathers the other does too."""
    met, given = threading.Barrier(2, timeout=LONG_S), dict[int, Any]()

    def gather_results(done: Sequence[Any], count: int) -> list[Any]:
        given[threading.get_ident()] = done
        met.wait()
        return [thing for _, things in sorted(given.items()) for thing in things]

    monkeypatch.setattr(collect, "gather_results", gather_results)
    both = [Service(fingerprints=fingerprint).rewards() for fingerprint in ("f", there)]
    with ThreadPoolExecutor(2) as pool:
        going = [pool.submit(roll_out, SteppedEngine(lambda _: None), rewards, 2) for rewards in both]
    if there == "f":
        assert [len(future.result().samples) for future in going] == [8, 8]
    else:
        assert all("different models (fingerprints f, g)" in str(future.exception()) for future in going)


def test_a_process_without_prompts_learns_the_fingerprint_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It compares with it in the next step."""
    sample = collect.ScoredCompletion(
        asked(1)[0], Completion((1,), (7,), (-0.5,), "stop"), "text", CompletionScore(2.0, {})
    )
    monkeypatch.setattr(collect, "select_own", lambda _: [])
    monkeypatch.setattr(collect, "gather_results", lambda *_: [(sample, "f")])
    rewards = Service().rewards()
    roll_out(SteppedEngine(lambda _: None), rewards, chunks=1)
    assert rewards.fingerprint == "f"
