"""Requests of vLLM's example clients, sent again byte for byte; only the path begins with the wire's, as in nginx.

`recorded/vllm/SCRIPT-COMMIT-N.http` holds the bytes of the Nth request of a script of `examples/pooling` in
https://github.com/vllm-project/vllm at that commit (Apache-2.0), which ran unchanged against a socket server. That
server called its model `mix`, and tokenized every text as the ids 1 and 2. `pooling_online.py` sends the same two
requests as `sequence_reward_online.py`.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from assay_service import create_app, read_settings
from assay_service.scoring.blend import compute_probability
from tests.compat.conftest import RECORDED, run_app
from tests.compat.test_recorded_clients import send_bytes

EXAMPLES = RECORDED / "vllm"
# The models of the examples for pairs, which the scripts name; here both are a tiny classifier.
MODELS = {"base": "BAAI/bge-reranker-base", "m3": "BAAI/bge-reranker-v2-m3"}


@pytest.fixture(scope="module")
def rerankers(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service whose bases have the names that the scripts ask for."""
    root = tmp_path_factory.mktemp("rerankers")
    declared = {"kind": "preference", "eos": "template", "unfinished": "error", "token_types": "zero"}
    for base in MODELS.values():
        shutil.copytree(tiny["root"] / "enc", root / base)
    signals = {name: {"base": base, **declared} for name, base in MODELS.items()}
    (root / "service.yaml").write_text(json.dumps({"signals": signals, "default": "base"}))
    with run_app(create_app(read_settings(root / "service.yaml"))) as served:
        yield served.url


def send(url: str, path: Path) -> tuple[int, Any]:
    return send_bytes(url, path.read_bytes().replace(b"POST /", b"POST /compat/vllm/", 1))


def score(url: str, model: str, pairs: list[tuple[str, str]]) -> list[float]:
    """The relevance that the wire gives to each pair, from the native scores."""
    items = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    rows = httpx.post(f"{url}/v1/score", json={"model": model, "items": items}).raise_for_status().json()["data"]
    return [compute_probability(row["score"]) for row in rows]


def list_requests(script: str, count: int) -> list[Path]:
    found = sorted(EXAMPLES.glob(f"{script}-*.http"))
    assert len(found) == count
    return found


def read_body(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(path.read_bytes().partition(b"\r\n\r\n")[2])
    return body


def test_every_recording_is_of_one_of_these_scripts() -> None:
    scripts = {path.name.partition("-")[0] for path in EXAMPLES.iterdir()}
    assert scripts == {"classification_online", "rerank_api_online", "score_api_online", "sequence_reward_online"}


def test_the_example_of_rerank_ranks_its_documents(rerankers: str) -> None:
    (request,) = list_requests("rerank_api_online", 1)
    body = read_body(request)
    assert body["model"] == MODELS["base"]
    scores = score(rerankers, "base", [(body["query"], document) for document in body["documents"]])
    status, answer = send(rerankers, request)
    assert status == 200
    assert {row["index"]: row["relevance_score"] for row in answer["results"]} == dict(enumerate(scores))
    assert len(set(scores)) == 3


def test_the_example_of_score_scores_its_pairs(rerankers: str) -> None:
    for request in list_requests("score_api_online", 3):
        body = read_body(request)
        assert body["model"] == MODELS["m3"]
        documents = [body["documents"]] if isinstance(body["documents"], str) else body["documents"]
        queries = body["queries"] if isinstance(body["queries"], list) else [body["queries"]] * len(documents)
        status, answer = send(rerankers, request)
        assert status == 200
        scores = score(rerankers, "m3", list(zip(queries, documents, strict=True)))
        assert [row["score"] for row in answer["data"]] == scores


@pytest.mark.parametrize(("script", "count"), [("classification_online", 2), ("sequence_reward_online", 2)])
def test_examples_without_a_completion_are_errors_of_vllms_form(url: str, script: str, count: int) -> None:
    for request in list_requests(script, count):
        status, answer = send(url, request)
        assert status == 400
        assert answer.keys() == {"error"}
        assert answer["error"].keys() == {"message", "type", "param", "code"}
