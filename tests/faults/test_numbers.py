"""A model that gives NaN for some texts only, so that no check at start can see it: errors, and never a number."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from assay_service import create_app, read_settings
from tests import checkpoints
from tests.faults.service import make_config

GOOD, BAD = {"prompt": "bake?", "completion": "bread"}, {"prompt": "bake?", "completion": "bread 7"}
CODE = "not_finite"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("numbers")
    config = make_config(root, {})
    poison(root / "rm" / "model.safetensors")
    with TestClient(create_app(read_settings(config)), raise_server_exceptions=False) as one:
        yield one


def poison(file: Path) -> None:
    """Make the embedding of the digit 7 NaN, as an optimizer that diverged on a rare token leaves it."""
    token = checkpoints.decoder_tokenizer().encode(" 7", add_special_tokens=False)[-1]
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][token] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})


def score(client: TestClient, *items: dict[str, str]) -> list[Any]:
    answer = client.post("/v1/score", json={"items": list(items)})
    assert answer.status_code == 200
    return [row.get("score", row.get("error", {}).get("code")) for row in answer.json()["data"]]


def test_neighbors_of_a_poisoned_item_have_their_scores_to_the_bit(client: TestClient) -> None:
    (alone,) = score(client, GOOD)
    assert isinstance(alone, float)
    assert score(client, BAD, GOOD, BAD) == [CODE, alone, CODE]
    assert score(client, BAD) == [CODE]  # again, and not from the cache


def test_no_endpoint_and_no_wire_makes_a_number_of_it(client: TestClient) -> None:
    texts = ["bread", "bread 7"]
    ranked = client.post("/v1/rank", json={"prompt": "bake?", "completions": texts}).json()
    assert [row["index"] for row in ranked["results"]] == [0]
    assert [row["error"]["code"] for row in ranked["errors"]] == [CODE]
    compared = client.post("/v1/compare", json={"prompt": "bake?", "a": texts[0], "b": texts[1]})
    assert (compared.status_code, compared.json()["error"]["code"]) == (500, CODE)
    wires = {
        "cohere/v2/rerank": {"model": "rm", "query": "bake?", "documents": texts},
        "jina/v1/rerank": {"model": "rm", "query": "bake?", "documents": texts},
        "tei/rerank": {"query": "bake?", "texts": texts},
        "vllm/score": {"model": "rm", "text_1": "bake?", "text_2": texts},
    }
    for path, body in wires.items():
        answer = client.post(f"/compat/{path}", json=body)
        assert answer.status_code == (424 if path.startswith("tei") else 500), path
        assert not re.search(r'score"|NaN[,}\]]', answer.text)
    assert 'assay_not_finite_total{signal="rm"}' in client.get("/metrics").text
