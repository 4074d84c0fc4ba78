"""The two models that come with the service: what they are, that they tell clear cases apart, and README's numbers."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from assay_service import create_app, registry, settings
from assay_service.scoring.blend import blend_logits
from assay_service.scoring.item import Item

EMBEDDED = settings.EMBEDDED.parent
TRIPLES = Path(__file__).parent / "clear_triples.jsonl"
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def service() -> Iterator[TestClient]:
    """Loading checks base hash, template hash, heads and golden rows."""
    with TestClient(create_app(settings.read_settings(settings.EMBEDDED))) as client:
        yield client


@pytest.fixture
def served(service: TestClient) -> registry.Registry:
    app: Any = service.app
    found: registry.Registry = app.state.scorer.registry
    return found


def score(served: registry.Registry, model: str, prompt: str, completion: str) -> float:
    blend = served.blend(model, None)
    logits = {}
    for name in blend.weights:
        signal = served.signals[name]
        sequence = signal.renderer.render(Item.of(prompt, completion)).sequence
        logits[name] = signal.model.logits([sequence], name).item()
    return blend_logits(blend, logits, served.moments, {})


def test_their_scores_are_proved_not_to_depend_on_the_batch(served: registry.Registry) -> None:
    assert served.invariant == {"preference": True, "absolute": True}


def test_it_serves_two_signals_and_two_blends(served: registry.Registry) -> None:
    assert {name: signal.kind for name, signal in served.signals.items()} == {
        "preference": "preference",
        "absolute": "absolute",
    }
    assert served.default == "crs"
    assert {name: (dict(b.weights), b.standardise) for name, b in served.blends.items()} == {
        "crs": ({"preference": 0.25, "absolute": 0.75}, "none"),
        "crs_std": ({"preference": 0.25, "absolute": 0.75}, "manifest"),
    }
    assert served.signals["preference"].model is served.signals["absolute"].model  # one base in memory


@pytest.mark.parametrize("name", ["preference", "absolute"])
def test_adapters_are_small_and_documented(name: str) -> None:
    files = list((EMBEDDED / name).glob("*.safetensors"))
    assert files
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    card = (EMBEDDED / name / "MODEL_CARD.md").read_text()
    for part in ("length", "frozen head", "SHA-256", "Seed", "assay train reward"):
        assert part in card
    assert json.loads((EMBEDDED / name / "assay.json").read_text())["base_sha256"] == (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    )


@pytest.mark.parametrize("model", ["crs", "crs_std"])
def test_clear_cut_triples_rank_right(served: registry.Registry, model: str) -> None:
    """Twenty of each category; a third was written before these models were trained, and all before their successors.

    Measured: 49 of 60 by either blend (20 off topic, 16 harmful, 13 unhelpful).
    """
    triples = [json.loads(line) for line in TRIPLES.read_text().splitlines()]
    assert Counter(t["category"] for t in triples) == {"off-topic": 20, "harmful": 20, "unhelpful": 20}
    right = sum(
        score(served, model, t["prompt"], t["chosen"]) > score(served, model, t["prompt"], t["rejected"])
        for t in triples
    )
    assert right >= 48


def test_the_requests_of_the_readme_have_its_numbers(service: TestClient) -> None:
    console = README.split("```console\n")[1].split("```")[0]
    requests = re.findall(r"localhost:8000(\S+) .*?-d '(.*?)'", console, flags=re.S)
    answers = {path: service.post(path, json=json.loads(body)) for path, body in requests}
    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(
        ("/v1/score", "/v1/compare", "/v1/render"), 200
    )
    printed = [(float(a), *map(float, re.findall(r'"logit": (\S+?),', b))) for a, b in re.findall(LINE, console)]
    rows = answers["/v1/score"].json()["data"]
    assert len(printed) == len(rows)
    for numbers, row in zip(printed, rows, strict=True):
        logits = [row["signals"][name]["logit"] for name in ("preference", "absolute")]
        assert numbers == pytest.approx([row["score"], *logits], abs=0.0015)


LINE = r'"index": \d, "score": (\S+), "signals": (.*)'


def test_the_readmes_table_is_that_of_the_example(service: TestClient) -> None:
    rows = [json.loads(line) for line in (ROOT / "examples" / "rank.jsonl").read_text().splitlines()]
    table = [line for line in README.split("| prompt | by")[1].split("\n\n")[0].splitlines() if " helpful" in line]
    assert len(table) == len(rows)
    for line, row in zip(table, rows, strict=True):
        _, prompt, *columns, _ = line.split("|")
        assert row["prompt"].startswith(prompt.strip().removesuffix(" …"))
        for model, column in zip(("crs", "preference"), columns, strict=True):
            body = {"prompt": row["prompt"], "completions": row["completions"], "model": model}
            ranked = [result["score"] for result in service.post("/v1/rank", json=body).json()["results"]]
            assert [float(n) for n in re.findall(r"-?\d\.\d\d", column)] == pytest.approx(ranked, abs=0.006)


def test_rendered_text_is_read_without_any_setting(service: TestClient) -> None:
    item = {"prompt": "Say Hi.", "completion": "Hi there."}
    (row,) = service.post("/v1/score", json={"items": [item]}).json()["data"]
    body = {"prompt": "[CLS]user: Say Hi.[SEP]assistant: ", "response": "Hi there.[SEP]"}
    assert service.post("/compat/slime/reward", json=body).json() == row["score"]
