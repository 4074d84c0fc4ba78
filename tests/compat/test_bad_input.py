"""Bad input by every wire for rerank, TEI, chat and Amazon Nova: the wire's own error, and never a score."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.compat.conftest import Serve

USER = {"role": "user", "content": "Name a prime."}
ASSISTANT = {"role": "assistant", "content": "Two."}


@dataclass(frozen=True)
class Endpoint:
    """One endpoint: a right body, where its text stands, and the keys of its errors."""

    path: str
    body: Any
    text: tuple[str | int, ...]  # path of a text that is scored
    many: Callable[[int], Any]  # a body with that many items
    error: Callable[[Any], bool]  # True for the shape of the wire's errors


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def build_rerank(path: str, field: str, error: Callable[[Any], bool]) -> Endpoint:
    body = {"query": "Name a prime.", field: ["Two.", "Four."]}
    return Endpoint(path, body, (field, 1), lambda n: {"query": "a", field: ["b"] * n}, error)


def is_openai(body: Any) -> bool:
    return set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}


COHERE = lambda body: set(body) == {"id", "message"} and is_text(body["message"])  # noqa: E731
JINA = lambda body: is_text(body["detail"]) and "results" not in body  # noqa: E731
TEI = lambda body: is_text(body["error"]) and body["error_type"] in {"Validation", "Empty"}  # noqa: E731
AWS = lambda body: set(body) == {"errorMessage", "errorType", "requestId"}  # noqa: E731

ENDPOINTS = [
    build_rerank("cohere/v1/rerank", "documents", COHERE),
    build_rerank("cohere/rerank", "documents", COHERE),
    build_rerank("cohere/v2/rerank", "documents", COHERE),
    build_rerank("jina/v1/rerank", "documents", JINA),
    build_rerank("tei/rerank", "texts", TEI),
    Endpoint(
        "tei/predict",
        {"inputs": [["Name a prime.", "Two."], ["Name a prime.", "Four."]]},
        ("inputs", 1, 1),
        lambda n: {"inputs": [["a", "b"]] * n},
        TEI,
    ),
    Endpoint(
        "chat/v1/chat/completions",
        {"messages": [USER, ASSISTANT]},
        ("messages", 1, "content"),
        lambda n: {"messages": [USER, ASSISTANT] * n},
        is_openai,
    ),
    Endpoint(
        "aws/reward",
        [{"id": "1", "messages": [USER, ASSISTANT], "metadata": {"reference_answer": None}}],
        (0, "messages", 1, "content"),
        lambda n: [{"id": str(i), "messages": [USER, ASSISTANT]} for i in range(n)],
        AWS,
    ),
]
by_path = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)


def put(body: Any, path: tuple[str | int, ...], value: object) -> Any:
    """A copy of `body` with another value at `path`."""
    if not path:
        return value
    changed: Any = copy.copy(body)
    changed[path[0]] = put(body[path[0]], path[1:], value)
    return changed


def check(url: str, endpoint: Endpoint, content: bytes) -> httpx.Response:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{url}/compat/{endpoint.path}", content=content, headers=headers)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert endpoint.error(answer.json()), answer.text
    assert "score" not in json.dumps([*walk_keys(answer.json())])
    return answer


def walk_keys(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(key for inner in value.values() for key in walk_keys(inner))]
    return [key for inner in value for key in walk_keys(inner)] if isinstance(value, list) else []


@by_path
def test_the_right_body_is_scored(url: str, endpoint: Endpoint) -> None:
    assert httpx.post(f"{url}/compat/{endpoint.path}", json=endpoint.body).status_code == 200


NOT_JSON = {
    "nothing": b"",
    "a word": b"hello",
    "half": b'{"query": "a", ',
    "not UTF-8": b'{"query": "\xff"}',
    "null": b"null",
    "a number": b"0",
    "a text": b'"text"',
    "a list of lists": b"[[]]",
    "an empty object": b"{}",
    "deep": b"[" * 100_000,
    "NaN": b"NaN",
}


@by_path
@pytest.mark.parametrize("name", NOT_JSON)
def test_a_body_of_another_form(url: str, endpoint: Endpoint, name: str) -> None:
    check(url, endpoint, NOT_JSON[name])


@by_path
@pytest.mark.parametrize(
    "value", [0, 1.5, True, {}, [], [["a"]], {"text": 5}, "\ud800", "a\udfff", float("nan")], ids=repr
)
def test_a_value_in_place_of_a_text(url: str, endpoint: Endpoint, value: object) -> None:
    check(url, endpoint, json.dumps(put(endpoint.body, endpoint.text, value)).encode())


@by_path
def test_null_in_place_of_a_text(url: str, endpoint: Endpoint) -> None:
    check(url, endpoint, json.dumps(put(endpoint.body, endpoint.text, None)).encode())


@by_path
def test_control_tokens_are_refused_as_natively(url: str, endpoint: Endpoint) -> None:
    check(url, endpoint, json.dumps(put(endpoint.body, endpoint.text, "Two.<|im_end|>")).encode())


@by_path
def test_a_text_that_is_too_long(url: str, endpoint: Endpoint) -> None:
    check(url, endpoint, json.dumps(put(endpoint.body, endpoint.text, "word " * 2000)).encode())


@by_path
def test_a_missing_field(url: str, endpoint: Endpoint) -> None:
    is_list = isinstance(endpoint.body, list)
    whole = endpoint.body[0] if is_list else endpoint.body
    for name in whole.keys() - {"metadata"}:
        body = {key: value for key, value in whole.items() if key != name}
        check(url, endpoint, json.dumps([body] if is_list else body).encode())


@by_path
def test_an_empty_list(url: str, endpoint: Endpoint) -> None:
    for path in {endpoint.text[:depth] for depth in range(len(endpoint.text))}:
        if isinstance(get(endpoint.body, path), list):
            check(url, endpoint, json.dumps(put(endpoint.body, path, [])).encode())


def get(body: Any, path: tuple[str | int, ...]) -> Any:
    return get(body[path[0]], path[1:]) if path else body


@by_path
def test_too_many_items(url: str, endpoint: Endpoint) -> None:
    """60,000 items are more bytes than this service reads (250,000); 65 are one more than `max_items`."""
    body = json.dumps(endpoint.many(60_000)).encode()
    assert len(body) > 250_000
    check(url, endpoint, body)
    if not endpoint.path.startswith("chat"):
        assert "65" in check(url, endpoint, json.dumps(endpoint.many(65)).encode()).text


@by_path
def test_a_key_that_occurs_twice(url: str, endpoint: Endpoint) -> None:
    text = json.dumps(endpoint.body)
    key = text[text.index('"') : text.index(":")]
    check(url, endpoint, text.replace(f"{key}:", f'{key}: "x", {key}:', 1).encode())


@by_path
@pytest.mark.parametrize("name", ["normalize", "prompt_template", "adapter"])
def test_an_unknown_field(url: str, endpoint: Endpoint, name: str) -> None:
    if isinstance(endpoint.body, list):  # columns of the data set, which the trainer copies into each sample
        body = [{**sample, name: 1} for sample in endpoint.body]
        assert httpx.post(f"{url}/compat/{endpoint.path}", json=body).status_code == 200
        return
    check(url, endpoint, json.dumps({**endpoint.body, name: 1}).encode())


@by_path
def test_a_model_that_is_not_served(serve: Serve, url: str, endpoint: Endpoint) -> None:
    if endpoint.path.startswith(("tei", "aws")):
        return  # these wires name no model in a request
    assert check(url, endpoint, json.dumps({**endpoint.body, "model": "other"}).encode()).status_code == 404


COHERE_FIELDS: Mapping[str, list[Any]] = {
    "top_n": [0, -1, 1.5, "3", True],
    "max_tokens_per_doc": [512, -1, "0", False],
    "max_chunks_per_doc": [10, 0, True],
    "max_tokens_per_query": [512],
    "rank_fields": [["title"], ["text", "title"], "text", []],
    "truncate_prompt_tokens": [-1, 100],
    "instruction": ["Prefer short answers."],
}


@pytest.mark.parametrize("name", COHERE_FIELDS)
@pytest.mark.parametrize("path", ["v1/rerank", "v2/rerank", "rerank"])
def test_fields_of_cohere_that_would_change_a_score(url: str, path: str, name: str) -> None:
    endpoint = build_rerank(f"cohere/{path}", "documents", COHERE)
    for value in COHERE_FIELDS[name]:
        check(url, endpoint, json.dumps({**endpoint.body, name: value}).encode())


def test_fields_of_litellm_without_influence_are_accepted(url: str) -> None:
    body = {
        **ENDPOINTS[0].body,
        **dict.fromkeys(("rank_fields", "max_tokens_per_doc", "instruction", "truncate_prompt_tokens", "top_n")),
        "max_chunks_per_doc": 1,
        "max_tokens_per_query": 0,
        "truncation_side": "left",
        "priority": 0,
        "user": "somebody",
    }
    plain = httpx.post(f"{url}/compat/cohere/v1/rerank", json=ENDPOINTS[0].body).json()
    assert httpx.post(f"{url}/compat/cohere/v1/rerank", json=body).json()["results"] == plain["results"]


def test_documents_of_cohere_v2_are_texts(url: str) -> None:
    body = {"query": "a", "documents": [{"text": "b"}]}
    check(url, ENDPOINTS[2], json.dumps(body).encode())


JINA_FIELDS = {
    "truncation": True,
    "max_doc_length": 512,
    "max_query_length": 64,
    "return_embeddings": True,
    "documents": [{"image": "https://example.com/a.png"}],
    "query": {"text": "a", "image": "b"},
    "top_n": 0,
}


@pytest.mark.parametrize("name", JINA_FIELDS)
def test_fields_of_jina_that_are_refused(url: str, name: str) -> None:
    check(url, ENDPOINTS[3], json.dumps({**ENDPOINTS[3].body, name: JINA_FIELDS[name]}).encode())


TEI_FIELDS: Mapping[str, list[Any]] = {
    "truncate": ["true", 1],
    "truncation_direction": ["LEFT", "both", 0, None],
    "raw_scores": ["yes", 1, None],
    "parameters": [{"function_to_apply": "none"}],
    "prompt_name": ["query"],
}


@pytest.mark.parametrize("name", TEI_FIELDS)
def test_fields_of_tei_that_are_refused(url: str, name: str) -> None:
    for endpoint in ENDPOINTS[4:6]:
        for value in TEI_FIELDS[name]:
            check(url, endpoint, json.dumps({**endpoint.body, name: value}).encode())


@pytest.mark.parametrize(
    "inputs", [[], [[]], [["a", "b", "c"]], ["a", "b", "c"], ["a", ["b"]], [["a"], "b"], [["a"], []]]
)
def test_forms_of_teis_inputs_that_are_refused(url: str, inputs: object) -> None:
    check(url, ENDPOINTS[5], json.dumps({"inputs": inputs}).encode())


CHAT_FIELDS = {
    "stream": True,
    "n": 2,
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"enable_thinking": False},
    "add_generation_prompt": True,
    "continue_final_message": True,
    "response_format": {"type": "json_object"},
    "tool_choice": "required",
}


@pytest.mark.parametrize("name", CHAT_FIELDS)
def test_fields_of_chat_that_are_refused(url: str, name: str) -> None:
    check(url, ENDPOINTS[6], json.dumps({**ENDPOINTS[6].body, name: CHAT_FIELDS[name]}).encode())


def test_two_samples_with_one_id(url: str) -> None:
    check(url, ENDPOINTS[7], json.dumps(ENDPOINTS[7].body * 2).encode())


def test_a_floored_sample_has_no_metrics(serve: Serve) -> None:
    url = serve(wires={"aws": {"on_item_error": {"floor": -7.5}}}).url
    long = {"id": "2", "messages": [USER, {"role": "assistant", "content": "word " * 2000}]}
    answer = httpx.post(f"{url}/compat/aws/reward", json=[*ENDPOINTS[7].body, long])
    assert answer.headers["x-assay-floored-items"] == "1"
    assert answer.json()[1] == {"id": "2", "aggregate_reward_score": -7.5, "metrics_list": []}


def test_a_sample_for_amazon_nova_that_was_cut_off_is_scored_as_such(url: str) -> None:
    """`finish_reason` and `tools` mean what they mean natively; all other columns are ignored."""
    sample = ENDPOINTS[7].body[0]
    native = httpx.post(
        f"{url}/v1/score", json={"items": [{"messages": sample["messages"], "finish_reason": "length"}]}
    )
    score = native.json()["data"][0]["score"]
    fields: list[dict[str, Any]] = [
        {"finish_reason": "length"},
        {"finish_reason": "stop"},
        {"tools": []},
        {"tools": [{"name": "x"}]},
    ]
    answers = [httpx.post(f"{url}/compat/aws/reward", json=[sample | field]) for field in fields]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 422]
    cut, stop, plain = (answer.json()[0]["aggregate_reward_score"] for answer in answers[:3])
    assert cut == score != stop == plain
    assert "tools are not rendered" in answers[3].json()["errorMessage"]
    assert httpx.post(f"{url}/compat/aws/reward", json=[sample | {"finish_reason": "cut"}]).status_code == 422
