"""vLLM's pooling endpoints: forms of input, activation, fields that are ignored or refused, errors, real payloads."""

import base64
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from assay_service import create_app, read_settings
from assay_service.errors import Overloaded
from tests import checkpoints
from tests.compat.conftest import Serve, forget_items

FAST = checkpoints.decoder_tokenizer()
PROMPT = "How do I bake bread?"
CHAT = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "Mix flour."}]
TEXT = str(FAST.apply_chat_template(CHAT, tokenize=False))
IDS = FAST.encode(TEXT, add_special_tokens=False)
RAW = {"model": "pref", "use_activation": False}


def post(url: str, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/compat/vllm{path}", json=body, timeout=60)


def read_probs(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    return [row["probs"][0] for row in answer.json()["data"]]


@pytest.fixture(scope="module")
def logit(tiny: dict[str, Any]) -> float:
    """The logit that PEFT and transformers give to the conversation."""
    return checkpoints.oracle(tiny["oracles"]["pref"], tuple(IDS))


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize(
    "body",
    [
        {"input": TEXT},
        {"input": f"<|bos|>{TEXT}"},
        {"input": f"<|pad|><|pad|>{TEXT}", "add_special_tokens": False},
        {"input": [TEXT]},
        {"input": IDS},
        {"input": [IDS]},
        {"messages": CHAT},
        {"messages": [CHAT[0], {"role": "assistant", "content": [{"type": "text", "text": "Mix flour."}]}]},
    ],
)
def test_every_form_of_a_conversation_gives_the_logit_of_transformers(
    url: str, logit: float, body: dict[str, Any]
) -> None:
    for path in ("/classify", "/v1/classify"):
        assert read_probs(post(url, path, **body, **RAW)) == pytest.approx([logit], abs=1e-4)
    for path in ("/pooling", "/v1/pooling"):
        (row,) = post(url, path, **body, **RAW).json()["data"]
        assert row["object"] == "pooling"
        assert row["data"] == pytest.approx([logit], abs=1e-4)


def test_text_without_an_end_of_turn_is_scored_as_cut_off(url: str, tiny: dict[str, Any]) -> None:
    cut = TEXT.removesuffix("<|im_end|>\n")
    expected = checkpoints.oracle(tiny["oracles"]["pref"], tuple(FAST.encode(cut, add_special_tokens=False)))
    assert read_probs(post(url, "/classify", input=cut, **RAW)) == pytest.approx([expected], abs=1e-4)


def test_an_answer_has_the_form_of_vllm(url: str) -> None:
    answer = httpx.post(
        f"{url}/compat/vllm/classify", json={"input": [TEXT, TEXT]}, headers={"X-Request-Id": "abc"}
    ).json()
    assert answer.pop("created") > 1_700_000_000
    (one, other) = (row.pop("probs") for row in answer["data"])
    assert one == other
    assert answer == {
        "id": "classify-abc",
        "object": "list",
        "model": "mix",
        "data": [{"index": index, "label": "LABEL_0", "num_classes": 1} for index in range(2)],
        "usage": {
            "prompt_tokens": 2 * len(IDS),
            "total_tokens": 2 * len(IDS),
            "completion_tokens": 0,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
    }


@pytest.mark.parametrize("off", [{"use_activation": False}, {"activation": False}, {"softmax": False}])
def test_the_sigmoid_is_the_default_and_every_name_of_the_activation_is_read(
    url: str, logit: float, off: dict[str, bool]
) -> None:
    asked = {"model": "pref", "input": TEXT}
    for on in ({}, {"use_activation": None}, {name: True for name in off}):
        assert read_probs(post(url, "/classify", **asked, **on)) == pytest.approx([sigmoid(logit)], abs=1e-5)
    assert read_probs(post(url, "/classify", **asked, **off)) == pytest.approx([logit], abs=1e-4)
    ranked = {"model": "pref", "query": PROMPT, "documents": ["Mix flour."]}
    for on, expected in (({}, sigmoid(logit)), (off, logit)):
        (row,) = post(url, "/rerank", **ranked, **on).json()["results"]
        assert row["relevance_score"] == pytest.approx(expected, abs=1e-4)


def test_names_of_the_activation_that_disagree_are_refused(url: str) -> None:
    answer = post(url, "/classify", input=TEXT, use_activation=True, activation=False)
    assert answer.status_code == 400
    assert "use_activation" in answer.json()["error"]["message"]


def test_base64_holds_a_little_endian_float32(url: str, logit: float) -> None:
    (row,) = post(url, "/pooling", input=TEXT, encoding_format="base64", **RAW).json()["data"]
    assert struct.unpack("<f", base64.b64decode(row["data"])) == pytest.approx((logit,), abs=1e-4)


@pytest.mark.parametrize(
    ("first", "second"),
    [("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2")],
)
def test_pairs_are_a_prompt_and_a_completion(url: str, logit: float, first: str, second: str) -> None:
    for path in ("/score", "/v1/score"):
        one = post(url, path, **{first: PROMPT, second: "Mix flour."}, **RAW).json()
        assert one["data"] == [{"index": 0, "object": "score", "score": pytest.approx(logit, abs=1e-4)}]
        several = post(url, path, **{first: PROMPT, second: ["Mix flour.", "No."]}, **RAW).json()["data"]
        each = post(url, path, **{first: [PROMPT, PROMPT], second: ["Mix flour.", "No."]}, **RAW).json()["data"]
        assert several == each
        assert several[0]["score"] == one["data"][0]["score"] != several[1]["score"]


def test_ranking_falls_and_ties_keep_their_order(url: str) -> None:
    documents = ["Mix flour.", "No.", "Mix flour.", "The quick brown fox", "No."]
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        answer = post(url, path, query=PROMPT, documents=documents, **RAW).json()
        scores = {row["index"]: row["relevance_score"] for row in answer["results"]}
        assert list(scores) == sorted(scores, key=lambda index: (-scores[index], index))
        assert scores[0] == scores[2]
        assert scores[1] == scores[4]
        assert all(
            row["document"] == {"text": documents[row["index"]], "multi_modal": None} for row in answer["results"]
        )
        top = post(url, path, query=PROMPT, documents=documents, top_n=2, **RAW).json()
        assert top["results"] == answer["results"][:2]
        assert top["usage"] == answer["usage"]


IGNORED = {"user": "a", "request_id": "b", "priority": 3, "cache_salt": "c", "padding": "do_not_pad"} | {
    "encoding_format": "float", "truncation_side": "left", "truncate_prompt_tokens": None, "mm_processor_kwargs": None
}  # fmt: skip
CHAT_ONLY = {"add_generation_prompt": False, "continue_final_message": False, "chat_template": None}


def test_fields_that_cannot_change_a_score_are_ignored(url: str) -> None:
    plain = read_probs(post(url, "/classify", messages=CHAT, **RAW))
    assert read_probs(post(url, "/classify", messages=CHAT, **RAW, **IGNORED, **CHAT_ONLY)) == plain
    more = {"embed_dtype": "float32", "endianness": "native", "dimensions": None}
    (row,) = post(url, "/pooling", messages=CHAT, **RAW, **IGNORED, **more).json()["data"]
    assert row["data"] == plain
    zero: dict[str, Any] = {
        "max_tokens_per_query": 0,
        "max_tokens_per_doc": 0,
        "instruction": None,
        "chat_template_kwargs": {},
    }
    (pair,) = post(url, "/score", queries=PROMPT, documents="Mix flour.", **RAW, **IGNORED, **zero).json()["data"]
    assert pair["score"] == plain[0]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/classify", {"chat_template": "{{ messages }}"}),
        ("/classify", {"chat_template_kwargs": {"enable_thinking": False}}),
        ("/classify", {"continue_final_message": True}),
        ("/classify", {"add_generation_prompt": True}),
        ("/classify", {"add_special_tokens": True}),
        ("/classify", {"padding": "max_length"}),
        ("/classify", {"normalize": False}),
        ("/classify", {"truncate_prompt_tokens": -1}),
        ("/classify", {"mm_processor_kwargs": {"a": 1}}),
        ("/classify", {"encoding_format": "base64"}),
        ("/classify", {"logit_bias": 1.0}),
        ("/classify", {"use_activation": "no"}),
        ("/pooling", {"task": "embed"}),
        ("/pooling", {"dimensions": 1}),
        ("/pooling", {"encoding_format": "bytes"}),
        ("/pooling", {"embed_dtype": "bfloat16"}),
        ("/pooling", {"endianness": "big"}),
        ("/score", {"max_tokens_per_doc": 8}),
        ("/score", {"instruction": "Judge."}),
        ("/rerank", {"max_tokens_per_query": 8}),
        ("/rerank", {"chat_template_kwargs": {"instruction": "Judge."}}),
        ("/rerank", {"rank_fields": ["text"]}),
    ],
)
def test_fields_that_would_change_a_score_are_refused(url: str, path: str, field: dict[str, Any]) -> None:
    body: dict[str, Any] = {
        "/score": {"queries": PROMPT, "documents": ["No."]},
        "/rerank": {"query": PROMPT, "documents": ["No."]},
    }.get(path, {"messages": CHAT})
    assert post(url, path, **body).status_code == 200
    check_error(post(url, path, **body, **field), 400)


def check_error(answer: httpx.Response, status: int, param: str | None = None) -> None:
    """The error has vLLM's form, and the body holds nothing that could be read as a score."""
    assert answer.status_code == status
    (error,) = answer.json().values()
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["code"] == status
    assert error["type"] == {400: "BadRequestError", 404: "NotFoundError", 503: "Service Unavailable"}[status]
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/classify", {}, None),
        ("/classify", {"input": TEXT, "messages": CHAT}, None),
        ("/classify", {"input": []}, "input"),
        ("/classify", {"input": 5}, "input"),
        ("/classify", {"input": [True]}, "input[0]"),
        ("/classify", {"input": [-1]}, "input[0]"),
        ("/classify", {"input": [IDS, [99999]]}, "input[1]"),
        ("/classify", {"input": [IDS, [2**32]]}, "input[1]"),
        ("/classify", {"input": [IDS, TEXT]}, "input[1]"),
        ("/classify", {"input": [TEXT, IDS]}, "input[1]"),
        ("/classify", {"input": [TEXT, PROMPT]}, "input[1]"),
        ("/classify", {"input": TEXT * 20}, "input"),
        ("/classify", {"input": f"<|bos|><|bos|>{TEXT}"}, "input"),
        ("/classify", {"messages": []}, "messages"),
        ("/classify", {"messages": CHAT[:1]}, "messages"),
        ("/score", {"queries": PROMPT}, None),
        ("/score", {"queries": PROMPT, "text_2": "No."}, None),
        ("/score", {"queries": PROMPT, "documents": ["No."], "items": ["No."]}, None),
        ("/score", {"queries": ["a", "b"], "documents": ["c", "d", "e"]}, None),
        ("/score", {"queries": ["a", "b"], "documents": "c"}, None),
        ("/score", {"queries": PROMPT, "documents": ["No.", "<|im_end|>"]}, "documents[1]"),
        ("/rerank", {"query": PROMPT, "documents": []}, "documents"),
        ("/rerank", {"query": PROMPT, "documents": [{"content": []}]}, "documents[0]"),
        ("/rerank", {"query": PROMPT, "documents": ["No."], "top_n": -1}, "top_n"),
    ],
)
def test_bad_input_is_an_error_in_the_form_of_vllm(
    url: str, path: str, body: dict[str, Any], param: str | None
) -> None:
    check_error(post(url, path, **body), 400, param)


def test_a_body_that_is_not_json_is_an_error_in_the_form_of_vllm(url: str) -> None:
    for content in (b'{"input": "a', b'{"input": "a", "input": "b"}', b'{"input": "\\ud800"}'):
        check_error(httpx.post(f"{url}/compat/vllm/classify", content=content, headers=JSON), 400)


JSON = {"content-type": "application/json"}


def test_ids_need_one_tokenizer(serve: Serve) -> None:
    settings = serve().app.state.settings
    blends = {"both": settings.blends["mix"].model_copy(update={"weights": {"pref": 1.0, "enc": 1.0}})}
    app = create_app(settings.model_copy(update={"blends": blends, "default": "both"}))
    with TestClient(app) as client:
        answer = client.post("/compat/vllm/classify", json={"input": IDS, "model": "both"})
    assert answer.status_code == 400
    assert "different tokenizers" in answer.json()["error"]["message"]


def test_a_full_queue_is_503_in_status_and_body(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """verl takes every 4xx for final, and vLLM itself answers 503."""
    served = serve()

    def refuse(*_: Any, **__: Any) -> None:
        raise Overloaded("the queue is full", retry_after_s=2)

    forget_items(served, monkeypatch)
    monkeypatch.setattr(served.app.state.scorer.engine, "submit", refuse)
    answer = post(served.url, "/classify", input=TEXT)
    check_error(answer, 503)
    assert answer.headers["Retry-After"] == "2"


def test_a_refused_item_gets_the_declared_floor_before_the_activation(serve: Serve) -> None:
    url = serve(wires={"vllm": {"on_item_error": {"floor": -3.0}}}).url
    answer = post(url, "/classify", input=[PROMPT, TEXT], model="pref")
    assert read_probs(answer)[0] == pytest.approx(sigmoid(-3))
    assert answer.headers["X-Assay-Floored-Items"] == "0"
    assert read_probs(post(url, "/classify", input=[PROMPT], **RAW)) == [-3.0]


def test_models_are_known_by_their_name_and_a_base_without_adapter_by_its_path(
    url: str, serve: Serve, tiny: dict[str, Any]
) -> None:
    check_error(post(url, "/classify", input=TEXT, model="/models/other"), 404, "model")
    encoder = serve().app.state.scorer.registry.signals["enc"].provenance.model
    adapted = serve().app.state.scorer.registry.signals["pref"].provenance.model
    named, by_path = (post(url, "/classify", messages=CHAT, model=name) for name in ("enc", encoder))
    assert read_probs(named) == read_probs(by_path)
    assert by_path.json()["model"] == encoder
    check_error(post(url, "/classify", input=TEXT, model=adapted), 404, "model")  # two signals are adapters of it
    listed = httpx.get(f"{url}/compat/vllm/v1/models").json()["data"]
    assert [row["id"] for row in listed] == ["mix", "pref", "abs", "enc", "mix_std"]


def test_the_call_of_verl_gives_the_logit_of_transformers(tmp_path: Path) -> None:
    """verl renders by the reward model's own template, removes its BOS, and names the model by its path."""
    fast = checkpoints.decoder_tokenizer(checkpoints.LLAMA3)
    model = checkpoints.classifier("llama", fast)
    directory = checkpoints.save(tmp_path / "rm", model, fast)
    (tmp_path / "service.yaml").write_text(
        f"signals: {{rm: {{base: {json.dumps(str(directory))}, kind: preference, eos: template, unfinished: score}}}}"
    )
    # The bodies that verl 0.9.1 sends: recorded from its `RewardLoopWorker.compute_score_disrm`.
    text = (
        "<|im_start|>user\n\nHow do I bake bread?<|im_end|><|im_start|>assistant\n\nMix flour.<|im_end|>"  # without BOS
    )
    payload = {"model": str(directory), "input": text, "use_activation": False}
    with TestClient(create_app(read_settings(tmp_path / "service.yaml"))) as client:
        answer = client.post("/compat/vllm/classify", json=payload).json()
        embedded = client.post("/compat/sglang/v1/embeddings", json={"model": str(directory), "input": text}).json()
    expected = checkpoints.oracle(model, tuple(fast.encode(f"<|bos|>{text}", add_special_tokens=False)))
    assert answer["data"][-1]["probs"][-1] == pytest.approx(expected, abs=1e-4)
    assert embedded["data"][-1]["embedding"][-1] == answer["data"][-1]["probs"][-1]


def test_the_examples_of_the_page_run(url: str, tiny: dict[str, Any]) -> None:
    docs = Path(__file__).parents[2] / "docs"
    pages = "".join((docs / f"server-{name}.md").read_text() for name in ("vllm", "sglang"))
    blocks = re.findall(r"```python\n(.*?)```", pages, flags=re.DOTALL)
    scores = []
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block.replace("http://127.0.0.1:8000", url).replace('"DIR"', repr(str(tiny["root"] / "base"))), names)
        scores.append(names["score"])
        if "client" in names:
            names["client"].close()
    assert len(scores) == 2
    assert scores[0] == pytest.approx(scores[1])  # the SDK reads float32
