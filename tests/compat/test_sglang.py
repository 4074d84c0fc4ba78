"""SGLang's endpoints for reward models, called by OpenAI's SDK and with SGLang's own bodies."""

import asyncio
import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient

from assay_service import create_app, read_settings
from assay_service.errors import Overloaded
from tests import checkpoints
from tests.compat.conftest import Serve, forget_items

FAST = checkpoints.decoder_tokenizer()
CHAT = [{"role": "user", "content": "How do I bake bread?"}, {"role": "assistant", "content": "Mix flour."}]
TEXT = str(FAST.apply_chat_template(CHAT, tokenize=False))
QUERY = str(FAST.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True))
ITEM = TEXT.removeprefix(QUERY)
IDS = FAST.encode(TEXT, add_special_tokens=False)
PATHS = [("/classify", "text"), ("/v1/embeddings", "input")]


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    """OpenAI's SDK at the wire."""
    with openai.OpenAI(base_url=f"{url}/compat/sglang/v1", api_key="none", max_retries=0) as client:
        yield client


def post(url: str, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/compat/sglang{path}", json=body, timeout=60)


def read(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def logit(tiny: dict[str, Any]) -> float:
    """The logit that PEFT and transformers give to the conversation."""
    return checkpoints.oracle(tiny["oracles"]["pref"], tuple(IDS))


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_the_sdk_of_openai_reads_scores_as_embeddings(
    client: openai.OpenAI, logit: float, encoding: str | None
) -> None:
    """Without an encoding, the SDK asks for base64 and decodes it itself."""
    asked: dict[str, Any] = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model="pref", input=[TEXT, TEXT], user="a", **asked)
    assert [row.index for row in answer.data] == [0, 1]
    for row in answer.data:
        value = struct.unpack("<f", base64.b64decode(row.embedding)) if encoding == "base64" else row.embedding  # type: ignore[arg-type]
        assert list(value) == pytest.approx([logit], abs=1e-4)
    assert (answer.model, answer.object) == ("pref", "list")
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 2 * len(IDS)
    assert "pref" in [model.id for model in client.models.list()]


def test_an_encoding_that_is_null_is_absent(url: str, logit: float) -> None:
    """LiteLLM sends null for a caller that names no encoding."""
    (row,) = read(post(url, "/v1/embeddings", model="pref", input=TEXT, encoding_format=None))["data"]
    assert row["embedding"] == pytest.approx([logit], abs=1e-4)


def test_the_asynchronous_sdk_of_openai_reads_scores_as_embeddings(url: str, logit: float) -> None:
    async def ask() -> list[float]:
        async with openai.AsyncOpenAI(base_url=f"{url}/compat/sglang/v1", api_key="none") as client:
            answers = await asyncio.gather(
                client.embeddings.create(model="pref", input=TEXT), client.embeddings.create(model="pref", input=IDS)
            )
        return [answer.data[0].embedding[0] for answer in answers]

    assert asyncio.run(ask()) == pytest.approx([logit, logit], abs=1e-4)


def test_the_sdk_of_openai_reads_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="neither a signal nor a blend"):
        client.embeddings.create(model="other", input=TEXT)
    with pytest.raises(openai.BadRequestError, match="not a conversation of this template"):
        client.embeddings.create(model="pref", input="Hello")
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="pref", input=TEXT, dimensions=2)


@pytest.mark.parametrize(
    "body",
    [
        {"query": QUERY, "items": [ITEM]},
        {"query": QUERY, "items": ITEM},
        {"query": QUERY, "items": [ITEM], "apply_softmax": False, "item_first": False, "temperature": 1.0},
        {"query": FAST.encode(QUERY, add_special_tokens=False), "items": [FAST.encode(ITEM, add_special_tokens=False)]},
        {"query": "", "items": [TEXT]},
        {"items": [TEXT], "label_token_ids": None, "return_pooled_hidden_states": False},
        {"query": ITEM, "items": [QUERY], "item_first": True},
    ],
)
def test_items_are_scored_behind_the_query(url: str, logit: float, body: dict[str, Any]) -> None:
    answer = read(post(url, "/v1/score", model="pref", **body))
    assert answer.pop("scores") == [[pytest.approx(logit, abs=1e-4)]]
    assert answer.pop("usage")["prompt_tokens"] == len(IDS)
    assert answer == {"model": "pref", "object": "scoring", "pooled_hidden_states": None, "token_logprobs": None}


def test_each_item_is_scored_by_itself(url: str) -> None:
    items = [ITEM, "No.<|im_end|>", "Mix flour."]
    together = read(post(url, "/v1/score", model="pref", query=QUERY, items=items))["scores"]
    alone = [read(post(url, "/v1/score", model="pref", query=QUERY, items=item))["scores"][0] for item in items]
    assert together == alone
    assert len({score for (score,) in together}) == 3  # the last one is cut off


def test_a_text_gives_an_object_and_a_list_gives_a_list(url: str, logit: float) -> None:
    for field, one in (("text", TEXT), ("input_ids", IDS)):
        single = read(post(url, "/classify", model="pref", **{field: one}, sampling_params={}, rid="a"))
        assert single["embedding"] == pytest.approx([logit], abs=1e-4)
        assert single["meta_info"]["prompt_tokens"] == len(IDS)
        several = read(post(url, "/classify", model="pref", **{field: [one, one]}))
        assert [row["embedding"] for row in several] == [single["embedding"]] * 2
        assert [sorted(row) for row in several] == [["embedding", "meta_info"]] * 2


def test_the_model_default_is_the_default(url: str) -> None:
    """SGLang fills in `default` for requests that name no model."""
    bare, named, mix = (
        read(post(url, "/v1/embeddings", input=TEXT, **model))["data"]
        for model in ({}, {"model": "default"}, {"model": "mix"})
    )
    assert bare == named == mix


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/score", {"apply_softmax": True}),
        ("/v1/score", {"temperature": 0.5}),
        ("/v1/score", {"label_token_ids": [1, 2]}),
        ("/v1/score", {"return_pooled_hidden_states": True}),
        ("/v1/score", {"score_extraction_token": "<score>"}),
        ("/v1/score", {"query": [QUERY, QUERY]}),
        ("/v1/embeddings", {"dimensions": 1}),
        ("/v1/embeddings", {"encoding_format": "bytes"}),
        ("/v1/embeddings", {"lora_path": "a"}),
        ("/v1/embeddings", {"input": []}),
        ("/v1/embeddings", {"input": [TEXT, ""]}),
        ("/v1/embeddings", {"input": {"text": TEXT}}),
        ("/classify", {"image_data": "a"}),
        ("/classify", {"is_cross_encoder_request": True}),
        ("/classify", {"input_ids": IDS}),
        ("/classify", {"text": None}),
        ("/classify", {"text": [["a", "b"]]}),
        ("/classify", {"unknown": 1}),
    ],
)
def test_bad_input_is_an_error_in_the_form_of_sglang(url: str, path: str, field: dict[str, Any]) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/score": {"query": QUERY, "items": [ITEM]},
        "/v1/embeddings": {"input": TEXT},
        "/classify": {"text": TEXT},
    }
    body = bodies[path]
    assert post(url, path, **body).status_code == 200
    answer = post(url, path, **{**body, **field})
    assert answer.status_code == 400
    error = answer.json()
    assert sorted(error) == ["code", "message", "object", "param", "type"]
    assert (error["object"], error["type"], error["code"]) == ("error", "BadRequestError", 400)


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ({"text": "Hello"}, "text: "),
        ({"text": [TEXT, f"{QUERY}a<|im_start|>b"]}, "text[1]: "),
        ({"input_ids": IDS[:3]}, "input_ids: "),
        ({"input_ids": [IDS, IDS[:3]]}, "input_ids[1]: "),
    ],
)
def test_texts_that_cannot_be_scored_have_the_form_of_each_path(url: str, field: dict[str, Any], named: str) -> None:
    """SGLang's own `/classify` has another form, in which clients read `error.message`."""
    native = post(url, "/classify", **field)
    assert native.status_code == 400
    assert native.json().keys() == {"error"}
    assert native.json()["error"].keys() == {"message"}
    assert native.json()["error"]["message"].startswith(named)
    (value,) = field.values()
    other = post(url, "/v1/embeddings", input=value)
    assert other.status_code == 400
    assert sorted(other.json()) == ["code", "message", "object", "param", "type"]
    assert native.json()["error"]["message"] == named + other.json()["message"]


def test_failures_of_the_server_have_one_form_on_all_paths(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()

    def refuse(*_: Any, **__: Any) -> None:
        raise Overloaded("the queue is full", retry_after_s=2)

    forget_items(served, monkeypatch)
    monkeypatch.setattr(served.app.state.scorer.engine, "submit", refuse)
    answers = [post(served.url, path, **{field: TEXT}) for path, field in PATHS]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert answers[0].json() == answers[1].json()
    unknown = [post(served.url, path, model="absent", **{field: TEXT}) for path, field in PATHS]
    assert [answer.status_code for answer in unknown] == [404, 404]
    assert unknown[0].json() == unknown[1].json()


def test_ids_keep_the_space_before_a_completion(tmp_path: Path) -> None:
    """A decoder that drops it at the start of a text must read the completion behind its prompt."""
    fast = checkpoints.metaspace_tokenizer()
    checkpoints.save(tmp_path / "rm", checkpoints.classifier("llama", fast), fast)
    (tmp_path / "service.yaml").write_text(
        "signals: {rm: {base: rm, kind: absolute, eos: template, unfinished: score, score_position: last_token}}"
    )
    prompt, completion = "<|im_start|>user\nhow do<|im_end|>\n<|im_start|>assistant\n", " the sun<|im_end|>"
    query, whole = (fast(text, add_special_tokens=False).input_ids for text in (prompt, prompt + completion))
    assert whole[: len(query)] == query
    item = {"prompt": "how do", "completion": " the sun"}
    with TestClient(create_app(read_settings(tmp_path / "service.yaml"))) as client:
        native = client.post("/v1/score", json={"items": [item, item | {"completion": "the sun"}]}).json()["data"]
        body = {"query": query, "items": [whole[len(query) :]]}
        scores = client.post("/compat/sglang/v1/score", json=body).json()["scores"]
        mixed = client.post("/compat/sglang/v1/score", json=body | {"query": prompt})
    assert scores == [[native[0]["score"]]]
    assert native[0]["score"] != native[1]["score"]
    assert mixed.status_code == 400
