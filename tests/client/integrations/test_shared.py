"""What all bridges share: rows become items, and one scoring call serves several functions."""

import asyncio
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from assay_client import FingerprintChanged, InvalidInput, ScoreFailure
from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.integrations import _shared
from assay_client.integrations._rows import build_item, build_rows, read_finish_reason, read_token_ids
from assay_client.integrations._scorer import AsyncScorer, ScoreOptions, Scorer, read_rewards
from assay_client.integrations._shared import SharedAnswers
from tests.client.conftest import Wire

ASSISTANT = {"role": "assistant", "content": "1.5"}


class Asked:
    """A service that counts its requests; its fingerprint can change."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.fingerprint = "f1"

    def __call__(self, request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        self.requests.append(asked)
        return Wire.answer(request, json=Wire.scored(asked, self.fingerprint))

    async def answer_async(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.02)
        return self(request)


@pytest.mark.parametrize(("ids", "reason"), [([5, 2], "stop"), ([2, 5], "length"), ([], "length"), ([3], "stop")])
def test_the_last_token_decides_the_finish_reason(ids: list[int], reason: str) -> None:
    assert read_finish_reason(ids, read_token_ids([2, 3])) == reason


@pytest.mark.parametrize("ids", [[], [None], "2", [-1]])
def test_end_tokens_that_are_none_are_refused(ids: Any) -> None:
    with pytest.raises(InvalidInput, match="eos_token_id"):
        read_token_ids(ids)


def test_rows_of_text_and_of_messages_become_items() -> None:
    prompt = [{"role": "user", "content": "Hi"}]
    call = {"role": "assistant", "tool_calls": [{"id": "1"}]}
    tool = {"role": "tool", "content": "7"}
    assert build_item("Hi", "1.5", "length").to_wire() == {
        "prompt": "Hi",
        "completion": "1.5",
        "finish_reason": "length",
    }
    assert build_item("Hi", [ASSISTANT]).to_wire() == {"messages": [*prompt, ASSISTANT]}
    turns = build_item(prompt, [call, tool, ASSISTANT]).to_wire()["messages"]
    assert turns == [*prompt, {**call, "content": None}, tool, ASSISTANT]


def test_a_row_without_a_form_is_a_failure_in_its_place() -> None:
    asked = Asked()
    client = RewardClient("http://a", transport=httpx.MockTransport(asked))
    completions = [[{"role": "tool", "content": "7"}], "2.5", 7, "bad", []]
    rows = build_rows(["p"] * 5, completions, ["stop"] * 5)
    result = Scorer(client, ScoreOptions()).score(rows)
    assert len(asked.requests[0]["items"]) == 2
    assert read_rewards(result) == [None, 2.5, None, None, None]
    assert [row.index for row in result.data] == [0, 1, 2, 3, 4]
    codes = [row.error.code for row in result.data if isinstance(row, ScoreFailure)]
    assert codes == ["invalid_row", "invalid_row", "special_token", "invalid_row"]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(InvalidInput, match="one length"):
        build_rows(["p", "q"], ["1"], ["stop"])


def test_functions_share_one_call_for_equal_rows_and_no_other() -> None:
    asked = Asked()
    client = RewardClient("http://a", transport=httpx.MockTransport(asked))
    scorer = Scorer(client, ScoreOptions.for_signals(["preference"]), ["a", "b"])
    rows, others = (build_rows(["p"], [text], ["stop"]) for text in ("1", "2"))
    cut = build_rows(["p"], ["1"], ["length"])
    for reader in ("a", "b"):
        for given in (rows, others, cut):
            scorer.score(given, reader, step=1)
    assert len(asked.requests) == 3
    assert asked.requests[0]["weights"] == {"preference": 1.0}
    # The last function has read each answer: it is not kept for the next step.
    assert read_rewards(scorer.score(rows, "a", step=1), "preference") == [1.0]
    assert len(asked.requests) == 4
    # A function that asks again, although the other has not asked, is given a new answer.
    scorer.score(rows, "a", step=1)
    assert len(asked.requests) == 5


def test_answers_of_an_earlier_step_are_dropped() -> None:
    calls: list[int] = []

    def ask() -> int:
        calls.append(1)
        return len(calls)

    shared = SharedAnswers[int](2)
    assert shared.get("a", "rows", ask, step=1) == 1
    assert shared.get("a", "rows", ask, step=2) == 2
    assert shared.get("b", "rows", ask, step=2) == 2
    assert shared.get("b", "rows", ask, step=1) == 3


def test_an_answer_of_an_aborted_step_without_a_number_is_never_given_later() -> None:
    """The first function was given its answer; the step then failed, and the model behind the service changed."""
    asked = Asked()
    client = RewardClient("http://a", transport=httpx.MockTransport(asked))
    scorer = Scorer(client, ScoreOptions(), ["a", "b"])
    rows = build_rows(["p"], ["1"], ["stop"])
    scorer.score(rows, "a")
    asked.fingerprint = "f2"
    with pytest.raises(FingerprintChanged):  # an answer that was kept would hide it
        scorer.score(rows, "b")
    answers = iter(range(9))
    shared = SharedAnswers[int](3)
    got = [shared.get(reader, "q", lambda: next(answers)) for reader in "abcacb"]
    assert got == [0, 1, 2, 3, 4, 5]
    assert asyncio.run(_ask_in_turn(SharedAnswers[int](2))) == [1, 2]


async def _ask_in_turn(shared: SharedAnswers[int]) -> list[int]:
    async def ask(value: int) -> int:
        return value

    first = await shared.get_async("a", "q", lambda: ask(1))
    return [first, await shared.get_async("b", "q", lambda: ask(2))]


def test_the_number_of_kept_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shared, "MAX_KEPT", 2)
    shared = SharedAnswers[str](2)
    for question in ("1", "2", "3"):
        shared.get("a", question, lambda: "first", step=1)
    assert [shared.get("b", question, lambda: "second", step=1) for question in ("3", "2", "1")] == [
        "first",
        "first",
        "second",
    ]


def test_threads_wait_for_one_call() -> None:
    asked, gate = Asked(), threading.Event()

    def slow(request: httpx.Request) -> httpx.Response:
        gate.wait(5)
        return asked(request)

    names = [str(n) for n in range(8)]
    scorer = Scorer(RewardClient("http://a", transport=httpx.MockTransport(slow)), ScoreOptions(), names)
    rows = build_rows(["p"], ["1"], ["stop"])
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(scorer.score, rows, name) for name in names]
        gate.set()
        assert [read_rewards(future.result()) for future in futures] == [[1.0]] * 8
    assert len(asked.requests) == 1


def test_an_error_is_given_to_all_that_wait_and_is_not_kept() -> None:
    started, gate, calls = threading.Event(), threading.Event(), []

    def fail() -> str:
        calls.append(1)
        started.set()
        gate.wait(5)
        raise ConnectionError("no")

    shared = SharedAnswers[str](2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(shared.get, "a", "q", fail)
        started.wait(5)
        second = pool.submit(shared.get, "b", "q", fail)
        gate.set()
        for future in (first, second):
            with pytest.raises(ConnectionError):
                future.result()
    assert shared.get("a", "q", lambda: "fine") == "fine"


def test_coroutines_share_one_call_and_one_that_is_cancelled_is_replaced() -> None:
    asked = Asked()

    async def run() -> list[list[float | None]]:
        client = AsyncRewardClient("http://a", transport=httpx.MockTransport(asked.answer_async))
        scorer = AsyncScorer(client, ScoreOptions(), ["a", "b", "c"])
        rows = build_rows(["p"], ["1"], ["stop"])
        tasks = [asyncio.create_task(scorer.score(rows, name)) for name in "abc"]
        await asyncio.sleep(0.005)
        tasks[0].cancel()  # the one that asks
        tasks[1].cancel()  # one that waits
        results = await asyncio.gather(tasks[2], scorer.score(rows, "a"))
        return [read_rewards(result) for result in results]

    assert asyncio.run(run()) == [[1.0], [1.0]]
    assert len(asked.requests) == 1


def test_two_event_loops_share_one_call() -> None:
    asked, together = Asked(), threading.Barrier(2)
    client = AsyncRewardClient("http://a", transport=httpx.MockTransport(asked.answer_async))
    scorer = AsyncScorer(client, ScoreOptions(), ["a", "b"])
    rows = build_rows(["p"], ["1"], ["stop"])

    def run(name: str) -> list[float | None]:
        together.wait(5)
        return read_rewards(asyncio.run(scorer.score(rows, name)))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, "ab")) == [[1.0], [1.0]]
    assert len(asked.requests) == 1


def test_another_model_in_a_later_step_is_an_error() -> None:
    asked = Asked()
    scorer = Scorer(RewardClient("http://a", transport=httpx.MockTransport(asked)), ScoreOptions())
    rows = build_rows(["p"], ["1"], ["stop"])
    scorer.score(rows)
    asked.fingerprint = "f2"
    with pytest.raises(FingerprintChanged):
        scorer.score(rows)


def test_a_scorer_can_be_pickled_and_its_copy_has_no_answers() -> None:
    shared = SharedAnswers[str](2)
    shared.get("a", "q", lambda: "first", step=1)
    copy: SharedAnswers[str] = pickle.loads(pickle.dumps(shared))
    assert copy.get("b", "q", lambda: "second", step=1) == "second"
    scorer = Scorer(RewardClient("http://a"), ScoreOptions(model="crs"), ["a", "b"])
    first, second = pickle.loads(pickle.dumps([scorer, scorer]))
    assert first is second
    assert first.options == scorer.options


@pytest.mark.parametrize("signals", [[], ["a", "a"], "preference"])
def test_signals_are_a_list_of_different_names(signals: Any) -> None:
    with pytest.raises(InvalidInput, match="signals"):
        ScoreOptions.for_signals(signals)
