"""TEI's wire: its own examples, the forms of its inputs, and Hugging Face's client."""

import json
import math
import shutil
import subprocess
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient

from tests.compat.conftest import Serve

PAIR = ["What is Deep Learning?", "Deep learning is..."]


def score(url: str, prompt: str, completion: str) -> float:
    item = {"prompt": prompt, "completion": completion}
    row = httpx.post(f"{url}/v1/score", json={"items": [item]}).json()["data"][0]
    return float(row["score"])


def sigmoid(value: float) -> float:
    return 0.5 + 0.5 * math.tanh(value / 2)


def render(url: str, prompt: str, completion: str) -> str:
    """The text that the reward model reads, from `/v1/render`."""
    body = {"model": "pref", "items": [{"prompt": prompt, "completion": completion}]}
    return str(httpx.post(f"{url}/v1/render", json=body).json()["data"][0]["signals"]["pref"]["text"])


def test_the_example_of_teis_readme(url: str) -> None:
    body = b'{"query": "What is Deep Learning?", "texts": ["Deep Learning is not...", "Deep learning is..."]}'
    rows = httpx.post(f"{url}/compat/tei/rerank", content=body, headers={"Content-Type": "application/json"}).json()
    expected = {0: score(url, PAIR[0], "Deep Learning is not..."), 1: score(url, *PAIR)}
    assert [row["index"] for row in rows] == sorted(expected, key=lambda index: -expected[index])
    for row in rows:
        assert set(row) == {"index", "score"}
        assert row["score"] == pytest.approx(sigmoid(expected[row["index"]]), abs=1e-12)
    assert sum(row["score"] for row in rows) > 0


CURL = shutil.which("curl")


@pytest.mark.skipif(CURL is None, reason="there is no curl")
def test_the_commands_of_teis_readme(serve: Serve) -> None:
    """The arguments are those of the README; only the address differs. `/predict` has a text without completion."""
    url = f"{serve().url}/compat/tei"
    ranked = curl(
        f"{url}/rerank",
        '{"query": "What is Deep Learning?", "texts": ["Deep Learning is not...", "Deep learning is..."]}',
    )
    assert {row["index"]: row["score"] for row in ranked} == pytest.approx(
        {0: sigmoid(score(serve().url, PAIR[0], "Deep Learning is not...")), 1: sigmoid(score(serve().url, *PAIR))}
    )
    refused = curl(f"{url}/predict", '{"inputs":"I like you."}')
    assert refused.keys() >= {"error", "error_type"}
    assert refused["error_type"] == "Validation"


def curl(address: str, data: str) -> Any:
    arguments = [str(CURL), "--silent", address, "-X", "POST", "-d", data, "-H", "Content-Type: application/json"]
    return json.loads(subprocess.run(arguments, check=True, capture_output=True, timeout=60).stdout)


def test_rerank_returns_texts_and_raw_scores(url: str) -> None:
    body = {"query": PAIR[0], "texts": [PAIR[1], "No."], "raw_scores": True, "return_text": True}
    rows = httpx.post(f"{url}/compat/tei/rerank", json=body).json()
    assert {row["text"]: row["score"] for row in rows} == {t: score(url, PAIR[0], t) for t in (PAIR[1], "No.")}


def test_a_list_of_two_texts_is_a_pair(url: str) -> None:
    row = httpx.post(f"{url}/compat/tei/predict", json={"inputs": PAIR, "raw_scores": True}).json()
    assert row == [{"score": score(url, *PAIR), "label": "LABEL_0"}]


def test_a_batch_mixes_pairs_and_rendered_texts(serve: Serve) -> None:
    url = serve(wires={"tei": {"model": "pref"}}).url
    text = render(url, *PAIR)
    inputs = [PAIR, [text]]
    rows = httpx.post(f"{url}/compat/tei/predict", json={"inputs": inputs, "raw_scores": True}).json()
    assert len(rows) == 2
    assert rows[0] == rows[1]  # the same conversation, once as a pair and once as text
    single = httpx.post(f"{url}/compat/tei/predict", json={"inputs": text, "raw_scores": True}).json()
    assert single == rows[1]
    assert httpx.post(f"{url}/compat/tei/predict", json={"inputs": [text], "raw_scores": True}).status_code == 200


def test_the_client_of_hugging_face(serve: Serve) -> None:
    url = serve(wires={"tei": {"model": "pref"}}).url
    text = render(url, *PAIR)
    client = InferenceClient(model=f"{url}/compat/tei/predict")
    found: Any = client.text_classification(text)
    expected = httpx.post(f"{url}/compat/tei/predict", json={"inputs": text}).json()[0]
    assert (found.score, found.label) == (expected["score"], expected["label"])


def test_truncation_cuts_prompts_from_the_left_and_nothing_else(url: str) -> None:
    def ask(**options: Any) -> httpx.Response:
        body = {"inputs": ["word " * 300, "Two."], "raw_scores": True, **options}
        return httpx.post(f"{url}/compat/tei/predict", json=body)

    item = {"prompt": "word " * 300, "completion": "Two."}
    native = httpx.post(f"{url}/v1/score", json={"items": [item], "truncation": "prompt_left"}).json()["data"][0]
    left = ask(truncate=True, truncation_direction="Left")
    assert left.json() == [{"score": native["score"], "label": "LABEL_0"}]
    for options in ({}, {"truncate": False, "truncation_direction": "left"}, {"truncate": True}):
        refused = ask(**options)
        assert refused.status_code == 422
        assert refused.json()["error_type"] == "Validation"


def test_errors_have_teis_types(url: str) -> None:
    empty = httpx.post(f"{url}/compat/tei/rerank", json={"query": "a", "texts": []})
    assert (empty.status_code, empty.json()["error_type"]) == (400, "Empty")
    wrong = httpx.post(f"{url}/compat/tei/predict", json={"inputs": ["a", "b", "c"]})
    assert (wrong.status_code, wrong.json()["error_type"]) == (422, "Validation")
