"""A signal that vLLM computes: the logits of our own engine, and none of its claims."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from assay_service import create_app, read_settings
from tests import checkpoints

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

FAST = checkpoints.decoder_tokenizer()
ITEMS = [
    {"prompt": "How do I bake bread?", "completion": text}
    for text in ("Mix flour, water, salt and yeast, and wait.", "No.", "Über Brot weiß ich nichts.", "The fox.")
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("rm")
    # vLLM's attention for CPUs has a least head size, so the model is wider than the other tiny ones.
    model = checkpoints.classifier("llama", FAST, hidden_size=256, intermediate_size=512, initializer_range=0.02)
    checkpoints.save(root / "rm", model, FAST)
    keys = "base: rm, kind: preference, eos: template, unfinished: score, dtype: float32, max_length: 256"
    (root / "service.yaml").write_text(
        f"signals:\n  ours: {{{keys}}}\n  vllm: {{{keys}, engine: vllm}}\ndefault: ours\n"
    )
    with TestClient(create_app(read_settings(root / "service.yaml"))) as running:
        yield running


def scores(client: TestClient, model: str, items: list[dict[str, str]]) -> list[float]:
    answer = client.post("/v1/score", json={"items": items, "model": model})
    assert answer.status_code == 200, answer.text
    return [row["score"] for row in answer.json()["data"]]


def test_both_engines_give_the_same_logits(client: TestClient) -> None:
    ours = scores(client, "ours", ITEMS)
    assert scores(client, "vllm", ITEMS) == pytest.approx(ours, abs=1e-4)
    assert max(ours) - min(ours) > 1e-2  # the model tells the completions apart


def test_what_vllm_cannot_keep_is_not_claimed(client: TestClient) -> None:
    info: dict[str, Any] = client.get("/info").json()
    assert (info["signals"]["ours"]["invariant"], info["signals"]["vllm"]["invariant"]) == (True, False)
    assert info["signals"]["vllm"]["kernels"]["name"].startswith("vllm ")
    assert info["numerics"]["invariant"] is False
    before = client.get("/metrics").text
    for _ in range(2):
        scores(client, "vllm", ITEMS[:1])
    hits = [line for line in client.get("/metrics").text.splitlines() if 'assay_lookups_total{result="hit"}' in line]
    assert hits == [line for line in before.splitlines() if 'assay_lookups_total{result="hit"}' in line]


def test_one_score_of_many_items_and_of_one(client: TestClient, tmp_path: Path) -> None:
    many = [{"prompt": "0 1 2 3", "completion": "fox " * n} for n in range(1, 60)]
    alone = scores(client, "ours", many)
    assert scores(client, "vllm", many) == pytest.approx(alone, abs=1e-4)
