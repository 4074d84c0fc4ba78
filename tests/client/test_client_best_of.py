"""Best of N: what is asked of a generator, what is ranked, and what the result keeps."""

import asyncio
import json
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import httpx
import pytest

from assay_client import (
    AsyncRewardClient,
    BestOfN,
    ConnectError,
    Endpoint,
    Generation,
    GenerationFailed,
    InvalidInput,
    ItemsFailed,
    RewardClient,
    best_of_n,
    best_of_n_async,
)
from tests.client.conftest import Wire

Pick = Callable[..., BestOfN]


class Server(ThreadingHTTPServer):
    """A chat server with OpenAI's interface: the completion is its seed, and `most` is the largest `n` it knows.

    It refuses larger ones with `refusal`, or gives only `most` if that is None.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.most = 8
        self.refusal: int | None = None
        self.order = 1  # -1 sends the choices backwards
        self.failing: dict[int, int | None] = {}  # the status of a request by its seed; None ends the connection
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.lock = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def answer(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        n = asked.get("n", 1)
        if n > self.most and self.refusal:
            return self.refusal, {"error": {"message": "n must be 1"}}
        if n == 1 and (status := self.failing.get(asked.get("seed", 0))):
            return status, {"error": {"message": "out of memory"}}
        texts = [str(asked["seed"] + k) for k in range(min(n, self.most))]
        choices = [
            {"index": k, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            for k, text in enumerate(texts)
        ]
        return 200, {"object": "chat.completion", "choices": choices[:: self.order]}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(asked)
            self.server.keys.add(self.headers["Authorization"])
        if asked.get("n", 1) == 1 and self.server.failing.get(asked.get("seed", 0), 0) is None:
            self.close_connection = True
            return
        status, content = self.server.answer(asked) if self.path == "/v1/chat/completions" else (404, {})
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("X-Request-ID", f"cmpl-{asked.get('seed')}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@contextmanager
def serve_numbers() -> Iterator[Server]:
    """A chat server that runs."""
    with Server() as started:
        thread = Thread(target=started.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield started
        finally:
            started.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serve_numbers() as started:
        yield started


@pytest.fixture
def ranked() -> list[dict[str, Any]]:
    """The requests that the service received."""
    return []


@pytest.fixture(params=["sync", "async"])
def pick(request: pytest.FixtureRequest, ranked: list[dict[str, Any]]) -> Pick:
    """Both functions, with a client of a service that scores a completion by its number."""

    def answer(asked: httpx.Request) -> httpx.Response:
        ranked.append(json.loads(asked.content))
        return Wire.answer(asked, json=Wire.ranked(ranked[-1]))

    transport = httpx.MockTransport(answer)

    def run(generate: Any, n: int, **options: Any) -> BestOfN:
        if request.param == "sync":
            return best_of_n(generate, RewardClient("http://a", transport=transport), n, **options)

        async def generated(*given: Any) -> Any:
            return generate(*given)

        ask = generate if isinstance(generate, Endpoint) else generated
        return asyncio.run(best_of_n_async(ask, AsyncRewardClient("http://a", transport=transport), n, **options))

    return run


def test_the_best_of_an_endpoint_with_its_evidence(server: Server, pick: Pick, ranked: list[dict[str, Any]]) -> None:
    endpoint = Endpoint(
        base_url=server.url,
        model="m",
        temperature=0.7,
        seed=10,
        max_tokens=5,
        api_key="k",
        options={"top_p": 0.9},
    )
    best = pick(endpoint, 3, prompt="Hi", model="crs")
    assert server.requests == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Hi"}],
            "temperature": 0.7,
            "n": 3,
            "max_tokens": 5,
            "seed": 10,
            "top_p": 0.9,
        }
    ]
    assert server.keys == {"Bearer k"}
    assert "k'" not in repr(endpoint)
    rows = [{"completion": text, "finish_reason": "stop"} for text in ("10", "11", "12")]
    assert ranked == [{"model": "crs", "prompt": "Hi", "completions": rows}]
    assert (best.index, best.text, best.score) == (2, "12", 12.0)
    assert best.scores == [10.0, 11.0, 12.0]
    assert best.errors == ()
    assert best.provenance.fingerprint == "f1"
    assert best.ranking.results[0].margin == 1.0


@pytest.mark.parametrize(("most", "refusal"), [(1, None), (1, 400), (1, 422), (2, None)])
def test_an_endpoint_that_gives_fewer_is_asked_for_the_rest(
    server: Server, pick: Pick, most: int, refusal: int | None
) -> None:
    server.most, server.refusal = most, refusal
    best = pick(Endpoint(base_url=server.url, model="m", seed=10), 4, prompt=[{"role": "user", "content": "Hi"}])
    # Each completion has the seed that it would have alone, so that none occurs twice.
    assert [one.text for one in best.completions] == ["10", "11", "12", "13"]
    assert len(server.requests) == 1 + 4 - (0 if refusal else most)


def test_a_refusal_of_the_endpoint_is_raised(server: Server, pick: Pick) -> None:
    server.most, server.refusal = 0, 400
    with pytest.raises(GenerationFailed, match=r"400.*n must be 1") as failed:
        pick(Endpoint(base_url=server.url, model="m", seed=1), 2, prompt="Hi")
    assert failed.value.status == 400
    with pytest.raises(GenerationFailed, match="404"):
        pick(Endpoint(base_url=server.url + "/nowhere", model="m", seed=1), 2, prompt="Hi")


def test_the_choices_of_an_answer_are_in_the_order_of_their_indexes(server: Server, pick: Pick) -> None:
    server.order = -1
    best = pick(Endpoint(base_url=server.url, model="m", seed=10), 3, prompt="Hi")
    assert [one.text for one in best.completions] == ["10", "11", "12"]
    assert best.index == 2


@pytest.mark.parametrize("indexes", [[0, None], [None, None], [0, 0], [1, 2], [-1, 0], [0, True], [0, "1"], [0, 1, 2]])
def test_choices_whose_indexes_do_not_count_from_0_are_refused(
    server: Server, pick: Pick, monkeypatch: pytest.MonkeyPatch, indexes: list[Any]
) -> None:
    message = {"role": "assistant", "content": "1"}
    choices = [{"message": message, **({} if k is None else {"index": k})} for k in indexes]
    monkeypatch.setattr(server, "answer", lambda _: (200, {"choices": choices}))
    with pytest.raises(GenerationFailed, match="the indexes of at most 2 choices must count from 0"):
        pick(Endpoint(base_url=server.url, model="m", seed=1), 2, prompt="Hi")


def test_a_request_that_fails_costs_its_own_completion_only(server: Server, pick: Pick) -> None:
    server.most, server.failing = 1, {12: 500, 13: 400, 14: None}
    best = pick(Endpoint(base_url=server.url, model="m", seed=10), 6, prompt="Hi")
    assert [one.text for one in best.completions] == ["10", "11", None, None, None, "15"]
    assert best.scores == [10.0, 11.0, None, None, None, 15.0]
    assert best.index == 5
    reported = [(row.index, row.error.code, row.error.retryable) for row in best.errors]
    assert reported == [(k, "generation_failed", again) for k, again in ((2, True), (3, False), (4, True))]
    assert "out of memory" in best.errors[0].error.message
    assert best.errors[0].error.message.endswith("(request cmpl-12)")
    first, last = best.completions[2].error, best.completions[4].error
    assert isinstance(first, GenerationFailed)
    assert (first.status, first.request_id) == (500, "cmpl-12")
    assert isinstance(last, ConnectError)


def test_the_first_error_is_raised_if_every_request_fails(server: Server, pick: Pick) -> None:
    server.most, server.refusal, server.failing = 1, 400, {10: 401, 11: 500}
    with pytest.raises(GenerationFailed, match=r"^401: .*out of memory.* \(request cmpl-10\)$") as failed:
        pick(Endpoint(base_url=server.url, model="m", seed=10), 2, prompt="Hi")
    assert failed.value.request_id == "cmpl-10"
    assert pickle.loads(pickle.dumps(failed.value)).request_id == "cmpl-10"


@pytest.mark.parametrize("name", ["model", "messages", "n", "stream", "temperature", "seed", "max_tokens"])
def test_options_do_not_override_what_the_endpoint_decides(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"`options` must not have `{name}`"):
        Endpoint(base_url="http://a/v1", model="m", options={"top_p": 0.9, name: 2})


def test_an_endpoint_that_is_not_there_is_a_connect_error(pick: Pick) -> None:
    with pytest.raises(ConnectError):
        pick(Endpoint(base_url="http://127.0.0.1:9/v1", model="m"), 2, prompt="Hi")


def test_an_answer_of_another_form_is_an_error(server: Server, pick: Pick, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[dict[str, Any]] = [{}, {"choices": [{}]}, {"choices": [{"message": None}]}, {"choices": []}]
    for body in bodies:
        monkeypatch.setattr(server, "answer", lambda _, body=body: (200, body))
        with pytest.raises(GenerationFailed):
            pick(Endpoint(base_url=server.url, model="m", seed=1), 2, prompt="Hi")


def test_a_function_may_generate_and_ties_go_to_the_first(pick: Pick, ranked: list[dict[str, Any]]) -> None:
    given = ["1.5", ("2.5", "length"), Generation("2.5", "stop"), "0"]
    best = pick(lambda prompt, n: given[:n], 4, prompt="Hi", weights={"preference": 1.0})
    assert (best.index, best.text) == (1, "2.5")
    assert best.completions[1] == Generation("2.5", "length")
    assert [row.get("finish_reason") for row in ranked[0]["completions"]] == [None, "length", "stop", None]
    assert ranked[0]["weights"] == {"preference": 1.0}


def test_refused_completions_keep_their_place_and_reason(pick: Pick, ranked: list[dict[str, Any]]) -> None:
    given = [("", "stop"), "bad", ("cut", "content_filter"), "3", (None, "tool_calls"), "4"]
    best = pick(lambda prompt, n: given, 6, prompt="Hi")
    assert [row["completion"] for row in ranked[0]["completions"]] == ["bad", "3", "4"]
    assert best.index == 5
    assert best.scores == [None, None, None, 3.0, None, 4.0]
    assert [(row.index, row.error.code) for row in best.errors] == [
        (0, "no_text"),
        (1, "special_token"),
        (2, "no_text"),
        (4, "no_text"),
    ]
    assert "content_filter" in best.errors[2].error.message


@pytest.mark.parametrize("given", [["", ("x", "content_filter")], ["bad", ""]])
def test_an_error_if_all_are_refused(pick: Pick, given: Any) -> None:
    with pytest.raises(ItemsFailed, match="2 of 2") as failed:
        pick(lambda prompt, n: given, 2, prompt="Hi")
    assert [one.index for one in failed.value.failures] == [0, 1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["1"], "2 completions, not 1"),
        (["1", "2", "3"], "2 completions, not 3"),
        ("12", "a list of 2 completions, not '12'"),
        (b"12", "a list of 2 completions, not b'12'"),
        (None, "a list of 2 completions, not None"),
        (7, "a list of 2 completions, not 7"),
        ({"1": 1, "2": 2}, "a list of 2 completions, not {"),
        (["1", 2], "a completion must be a text, .* not 2"),
        (["1", None], "a completion must be a text, .* not None"),
        (["1", b"2"], "a completion must be a text, .* not b'2'"),
        (["1", (2, "stop")], "a completion must be a text, .* not \\(2, 'stop'\\)"),
        ([("1", "2", "3"), "4"], "a completion must be a text, .* not \\('1', '2', '3'\\)"),
        ([Generation(3), "4"], "a completion must be a text, .* not Generation"),  # type: ignore[arg-type]
    ],
)
def test_a_generator_of_another_form_is_refused(pick: Pick, given: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        pick(lambda prompt, n: given, 2, prompt="Hi")


def test_a_coroutine_function_and_a_plain_one_are_not_confused(honest: httpx.MockTransport) -> None:
    async def generate(prompt: Any, n: int) -> list[str]:
        return ["1"] * n

    with pytest.raises(InvalidInput, match="pass it to `best_of_n_async`"):
        best_of_n(generate, RewardClient("http://a", transport=honest), 2, prompt="Hi")  # type: ignore[arg-type]
    client = AsyncRewardClient("http://a", transport=honest)
    plain: Any = lambda prompt, n: ["1"] * n  # noqa: E731
    with pytest.raises(InvalidInput, match="must be a coroutine function"):
        asyncio.run(best_of_n_async(plain, client, 2, prompt="Hi"))


def test_a_generation_with_another_finish_reason_is_not_sent(pick: Pick, ranked: list[dict[str, Any]]) -> None:
    odd = Generation("9", "content_filter")  # type: ignore[arg-type]
    assert pick(lambda prompt, n: [odd, "1"], 2, prompt="Hi").scores == [None, 1.0]
    assert [row["completion"] for row in ranked[0]["completions"]] == ["1"]


def test_none_of_none_is_refused(pick: Pick) -> None:
    with pytest.raises(InvalidInput, match="`n`"):
        pick(lambda prompt, n: [], 0, prompt="Hi")


def test_threads_may_use_one_endpoint(server: Server, pick: Pick) -> None:
    endpoint = Endpoint(base_url=server.url, model="m", seed=10)
    with ThreadPoolExecutor(4) as pool:
        picks = list(pool.map(lambda _: pick(endpoint, 2, prompt="Hi").text, range(4)))
    assert picks == ["11"] * 4
