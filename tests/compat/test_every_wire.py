"""Every path of every wire that scores: the score of the native path, overload, crashes, and bad bodies."""

import json
import math
import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from assay_service.api.compat.mount import WIRES
from assay_service.api.sources import UnreadItem
from assay_service.errors import ContentError, ForwardFailed, Overloaded
from assay_service.scoring.item import Item
from assay_service.scoring.token_reader import TokenReader
from tests.compat.conftest import Serve, forget_items

JSON = {"content-type": "application/json"}
USER, ASSISTANT = {"role": "user", "content": "say hi"}, {"role": "assistant", "content": "hi"}
PROMPT = "<|im_start|>user\nsay hi<|im_end|>\n<|im_start|>assistant\n"
TEXT = f"{PROMPT}hi<|im_end|>\n"
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "output": [
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "hi", "annotations": []}],
        }
    ],
}
VLLM: dict[str, dict[str, Any]] = {
    "/classify": {"input": TEXT, "use_activation": False},
    "/pooling": {"input": TEXT, "use_activation": False},
    "/score": {"text_1": "say hi", "text_2": "hi", "use_activation": False},
    "/rerank": {"query": "say hi", "documents": ["hi"]},
}
# A body for each path that scores; all of them hold the conversation of USER and ASSISTANT.
BODIES: dict[tuple[str, str], Any] = {
    ("aws", "/reward"): [{"id": "1", "messages": [USER, ASSISTANT], "metadata": {"reference_answer": "x"}}],
    ("chat", "/v1/chat/completions"): {"model": "mix", "messages": [USER, ASSISTANT]},
    ("cohere", "/rerank"): {"query": "say hi", "documents": ["hi"]},
    ("cohere", "/v1/rerank"): {"query": "say hi", "documents": ["hi"]},
    ("cohere", "/v2/rerank"): {"model": "mix", "query": "say hi", "documents": ["hi"]},
    ("jina", "/v1/rerank"): {"query": "say hi", "documents": ["hi"]},
    ("llamafactory", "/v1/score/evaluation"): {"model": "model", "messages": [TEXT], "max_length": None},
    ("nemo_gym", "/verify"): {"responses_create_params": {"input": [USER]}, "response": RESPONSE},
    ("nemo_gym", "/compare"): {"conversation_history": [USER], "response_objs": [RESPONSE, RESPONSE]},
    ("openrlhf", "/get_reward"): {"query": [TEXT], "prompts": [PROMPT], "labels": ["x"]},
    ("sglang", "/v1/score"): {"query": PROMPT, "items": ["hi<|im_end|>\n"]},
    ("sglang", "/v1/embeddings"): {"model": "mix", "input": TEXT},
    ("sglang", "/classify"): {"text": TEXT},
    ("slime", "/reward"): {"prompt": PROMPT, "response": "hi<|im_end|>\n", "label": "x"},
    ("tei", "/predict"): {"inputs": ["say hi", "hi"], "raw_scores": True},
    ("tei", "/rerank"): {"query": "say hi", "texts": ["hi"], "raw_scores": True},
    **{("vllm", f"{version}{path}"): body for version in ("", "/v1") for path, body in VLLM.items()},
    ("vllm", "/v2/rerank"): VLLM["/rerank"],
}
# Paths that score nothing.
OTHERS = {("nemo_gym", "/seed_session"), ("nemo_gym", "/aggregate_metrics")}
PATHS = sorted(BODIES)
# Wires whose clients send columns of their data sets.
IGNORING = {"aws", "nemo_gym", "openrlhf", "slime"}
# TEI's status for errors of its backend.
FAILED = {"tei": 424}
STATUSES: dict[str, int] = {wire.name: wire.overload_status for wire in WIRES}


def send(url: str, path: tuple[str, str], body: Any) -> httpx.Response:
    wire, rest = path
    return httpx.post(f"{url}/compat/{wire}{rest}", content=json.dumps(body), headers=JSON, timeout=60)


def list_numbers(value: Any) -> Iterator[float]:
    """All numbers of an answer, also those that are written into a text."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from list_numbers(part)
    elif isinstance(value, str):
        yield from map(float, re.findall(r"-?\d+\.\d+(?:e-?\d+)?", value))
    elif isinstance(value, float):
        yield value


def test_every_path_that_scores_is_tested_here() -> None:
    routes = {
        (wire.name, route.path)  # type: ignore[attr-defined]
        for wire, router in WIRES.items()
        for route in router.routes
        if "POST" in route.methods  # type: ignore[attr-defined]
    }
    assert {path for path in routes if "{" not in path[1]} == {*BODIES, *OTHERS}


@pytest.mark.parametrize("path", PATHS)
def test_the_score_is_that_of_the_native_path(path: tuple[str, str], url: str) -> None:
    native = httpx.post(f"{url}/v1/score", json={"items": [{"messages": [USER, ASSISTANT]}]}).json()["data"][0]["score"]
    answer = send(url, path, BODIES[path])
    assert answer.status_code == 200, answer.text
    numbers = list(list_numbers(answer.json()))
    assert native in numbers or 1 / (1 + math.exp(-native)) == pytest.approx(max(numbers), abs=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("declared", [None, 429, 503])
def test_a_full_queue_has_the_declared_status(
    path: tuple[str, str], declared: int | None, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(wires={} if declared is None else {name: {"overload_status": declared} for name in STATUSES})

    def refuse(*_: Any, **__: Any) -> None:
        raise Overloaded("the queue is full", retry_after_s=2)

    forget_items(served, monkeypatch)
    monkeypatch.setattr(served.app.state.scorer.engine, "submit", refuse)
    answer = send(served.url, path, BODIES[path])
    assert answer.status_code == (declared or STATUSES[path[0]])
    assert answer.headers["Retry-After"] == "2"
    assert not list(list_numbers(answer.json()))


@pytest.mark.parametrize("path", PATHS)
def test_a_client_whose_time_is_over_gets_an_error_in_the_form_of_its_wire(
    path: tuple[str, str], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A millisecond is over before any of these is rendered and computed."""
    forget_items(served := serve(), monkeypatch)
    answer = httpx.post(
        f"{served.url}/compat/{path[0]}{path[1]}", json=BODIES[path], headers={"X-Request-Timeout-Ms": "1"}
    )
    # TEI has one status for all failures of the service.
    assert answer.status_code == (424 if path[0] == "tei" else 504)
    assert not [number for number in list_numbers(answer.json()) if number != answer.status_code]


@pytest.mark.parametrize("path", PATHS)
def test_an_unknown_field_is_named_or_ignored_as_the_page_says(path: tuple[str, str], url: str) -> None:
    unknown = {"best_of": 2, "say hi, SECRET": 2}
    for name, value in unknown.items():
        body = BODIES[path]
        answer = send(url, path, [body[0] | {name: value}] if isinstance(body, list) else body | {name: value})
        if path[0] in IGNORING and path != ("nemo_gym", "/compare"):
            assert answer.status_code == 200
        else:
            assert 400 <= answer.status_code < 500
            assert ("best_of" in answer.text) == (name == "best_of")
            assert "SECRET" not in answer.text


def put_control_token(value: Any) -> Any:
    """The same body with a control token in every completion, for which its item is refused."""
    if isinstance(value, dict):
        return {key: put_control_token(part) for key, part in value.items()}
    if isinstance(value, list):
        return [put_control_token(part) for part in value]
    return re.sub(r"(?<!say )\bhi(?=$|<)", "h<|im_start|>i", value) if isinstance(value, str) else value


@pytest.mark.parametrize("path", PATHS)
def test_a_refused_item_fails_the_request_or_gets_the_declared_floor(path: tuple[str, str], serve: Serve) -> None:
    body = put_control_token(BODIES[path])
    failed = send(serve().url, path, body)
    assert 400 <= failed.status_code < 500
    assert "<|im_start|>" in failed.text
    assert not list(list_numbers(failed.json()))
    floored = send(serve(wires={name: {"on_item_error": {"floor": -7.25}} for name in STATUSES}).url, path, body)
    assert floored.status_code == 200, floored.text
    assert floored.headers["X-Assay-Floored-Items"] in ("0", "0,1")
    numbers = list(list_numbers(floored.json()))
    assert -7.25 in numbers or 1 / (1 + math.exp(7.25)) == pytest.approx(max(numbers), abs=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_a_failure_of_the_service_is_an_error_even_with_a_floor(
    path: tuple[str, str], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(wires={name: {"on_item_error": {"floor": -7.25}} for name in STATUSES})

    async def fail(items: Any, *_: Any, **__: Any) -> list[Any]:
        return [ForwardFailed("the forward pass failed") for _ in items]

    forget_items(served, monkeypatch)
    monkeypatch.setattr(served.app.state.scorer, "score", fail)
    answer = send(served.url, path, BODIES[path])
    assert answer.status_code == FAILED.get(path[0], 500)
    assert not list(list_numbers(answer.json()))


@pytest.mark.parametrize("path", PATHS)
def test_a_crash_is_an_error_that_quotes_nothing(
    path: tuple[str, str], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()

    async def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("SECRET")

    forget_items(served, monkeypatch)
    monkeypatch.setattr(served.app.state.scorer, "score", crash)
    answer = send(served.url, path, BODIES[path])
    assert answer.status_code == FAILED.get(path[0], 500)
    assert "SECRET" not in answer.text
    assert not list(list_numbers(answer.json()))


def spoil(body: Any) -> Iterator[bytes]:
    """Bodies that no wire may score."""
    text = json.dumps(body)
    yield b""
    yield b"{"
    yield b'"text"'
    yield b"[1]"
    yield b"{}"
    yield text.replace("say hi", "\\ud800", 1).encode() if "say hi" in text else text[:-1].encode()
    key = re.search(r'"(\w+)": ', text)
    assert key is not None
    yield text.replace("{", f'{{"{key[1]}": 1, ', 1).encode()  # a key twice
    for name in body if isinstance(body, dict) else ():
        yield json.dumps(body | {name: {"a": float("nan")}}).encode()


@pytest.mark.parametrize("path", PATHS)
def test_a_bad_body_is_refused_in_json_and_scores_nothing(path: tuple[str, str], url: str) -> None:
    wire, rest = path
    for body in spoil(BODIES[path]):
        answer = httpx.post(f"{url}/compat/{wire}{rest}", content=body, headers=JSON, timeout=60)
        assert 400 <= answer.status_code < 500, body
        assert not {"rewards", "scores", "score", "reward", "data", "results"} & set(answer.json()), body


def repeat(path: tuple[str, str], count: int) -> Any:
    """The body of a path with that many items; None for a path whose requests have one."""
    body = BODIES[path]
    if isinstance(body, list):
        return [body[0] | {"id": str(number)} for number in range(count)]
    names = ("query", "messages", "items", "documents", "texts", "input", "inputs", "text", "text_2", "response_objs")
    for name in names if path[0] != "chat" else ():
        if name in body and (path[0] == "openrlhf" or name != "query"):
            value = [["say hi", "hi"]] if name == "inputs" else body[name]
            many = (value[:1] if isinstance(value, list) else [value]) * count
            return {key: kept for key, kept in body.items() if key != "prompts"} | {name: many}
    return None


@pytest.mark.parametrize("path", PATHS)
def test_too_many_items_are_refused_before_any_is_built(
    path: tuple[str, str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million items of a small body take seconds to build, in which the service would answer nobody."""
    body = repeat(path, 65)
    if body is None:
        assert path[0] in ("chat", "slime") or path == ("nemo_gym", "/verify")
        return
    assert send(url, path, repeat(path, 2)).status_code == 200
    built = []
    for kind in (Item, UnreadItem, ContentError):
        monkeypatch.setattr(kind, "__init__", lambda *_, **__: built.append(1))
    answer = send(url, path, body)
    assert 400 <= answer.status_code < 500
    assert "the limit is 64 (max_items)" in answer.text
    assert not built


def test_token_ids_are_decoded_off_the_event_loop(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two million ids are a small body, and take seconds to decode."""
    threads, decode = set(), TokenReader._decode

    def watch(reader: TokenReader, ids: Any) -> str:
        threads.add(threading.current_thread().name)
        return decode(reader, ids)

    monkeypatch.setattr(TokenReader, "_decode", watch)
    ids = [5, 6, 7]
    for path, body in (
        (("vllm", "/classify"), {"input": [ids, ids]}),
        (("vllm", "/pooling"), {"input": ids}),
        (("sglang", "/classify"), {"input_ids": ids}),
        (("sglang", "/v1/embeddings"), {"input": ids}),
        (("sglang", "/v1/score"), {"query": ids, "items": [ids]}),
        (("sglang", "/v1/score"), {"query": ids, "items": [ids], "item_first": True}),
    ):
        threads.clear()
        assert send(url, path, body).status_code == 400  # they are no conversation
        assert {name.partition("_")[0] for name in threads} == {"assay-render"}


@pytest.mark.parametrize("body", [b"[1, ", b'{"a": NaN}', b'{"a": 1, "a": 1}'])
def test_an_error_of_the_json_names_no_field(url: str, body: bytes) -> None:
    """A place in the text is no index of an item."""
    for path in ["/v1/score", *(f"/compat/{wire}{rest}" for wire, rest in PATHS)]:
        answer = httpx.post(f"{url}{path}", content=body, headers=JSON, timeout=60)
        assert not re.search(r"\[\d+\]", answer.text), path


@pytest.mark.parametrize("wire", sorted(STATUSES))
def test_an_unknown_path_or_method_has_the_errors_form_of_the_wire(wire: str, url: str) -> None:
    path = next(rest for name, rest in PATHS if name == wire)
    bad = httpx.post(f"{url}/compat/{wire}{path}", content=b"{", headers=JSON)
    unknown, method = httpx.post(f"{url}/compat/{wire}/absent", json={}), httpx.delete(f"{url}/compat/{wire}{path}")
    for answer in (unknown, method):
        assert 400 <= answer.status_code < 500
        assert answer.json().keys() == bad.json().keys() != {"detail"}
