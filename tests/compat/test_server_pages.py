"""Runs the examples of the pages docs/server-*.md for TEI, rerankers, chat completions and Amazon Nova."""

import textwrap
from pathlib import Path
from typing import Any

import httpx
import litellm
import pytest

from tests.compat.conftest import Serve

DOCS = Path(__file__).parents[2] / "docs"
PAIR = {"prompt": "How do I bake bread?", "completion": "Mix flour and water."}


def list_examples(server: str) -> list[str]:
    text = (DOCS / f"server-{server}.md").read_text()
    return [textwrap.dedent(block.partition("```")[0]) for block in text.split("```python\n")[1:]]


def run(example: str, url: str) -> dict[str, Any]:
    """Run an example on a running service, whose only names differ from those of the embedded models."""
    found: dict[str, Any] = {}
    code = example.replace("http://127.0.0.1:8000", url).replace('"crs"', '"mix"').replace("cohere/crs", "cohere/mix")
    exec(compile(code, "example", "exec"), found)
    return found


def score(url: str) -> float:
    return float(httpx.post(f"{url}/v1/score", json={"items": [PAIR]}).json()["data"][0]["score"])


def test_tei(url: str) -> None:
    (example,) = list_examples("tei")
    assert run(example, url)["score"] == score(url)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_rerankers(url: str) -> None:
    body = {"prompt": PAIR["prompt"], "completions": ["I do not know.", PAIR["completion"]]}
    best = httpx.post(f"{url}/v1/rank", json=body).json()["results"][0]["index"]
    examples = list_examples("rerank")
    assert len(examples) == 3
    for example in examples:
        found = run(example, url)
        assert found["best"] == best
        if ranker := found.get("ranker"):
            ranker.client.__exit__(None, None, None)
    litellm.module_level_client.close()


def test_chat(url: str) -> None:
    (example,) = list_examples("chat")
    found = run(example, url)
    found["client"].close()
    assert found["score"] == score(url)
    assert set(found["rewards"]) == {"mix", "pref", "abs"}


def test_the_lambda_function(url: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event is the sample of AWS's documentation."""
    (example,) = list_examples("nova")
    monkeypatch.setenv("ASSAY_URL", url)
    monkeypatch.setenv("ASSAY_API_KEY", "")
    handler = run(example, url)["lambda_handler"]
    messages = [
        {"role": "user", "content": PAIR["prompt"]},
        {"role": "assistant", "content": PAIR["completion"]},
    ]
    sample = {"id": "123", "messages": messages, "metadata": {"reference_answer": {"compliant": "No"}, "my_key": "a"}}
    (answer,) = handler([sample], None)
    row = httpx.post(f"{url}/v1/score", json={"items": [PAIR]}).json()["data"][0]
    assert answer == {
        "id": "123",
        "aggregate_reward_score": row["score"],
        "metrics_list": [
            {"name": name, "value": value["logit"], "type": "Reward"} for name, value in row["signals"].items()
        ],
    }
    with pytest.raises(OSError, match="422"):
        handler([], None)
