"""The two models that come with the service: what they are, and that they tell clear cases apart."""

import json
from pathlib import Path

import pytest

from assay_service import loader, registry, settings
from assay_service.scoring.blend import blend_logits
from assay_service.scoring.item import Item

EMBEDDED = settings.EMBEDDED.parent
TRIPLES = Path(__file__).parent / "clear_triples.jsonl"


@pytest.fixture(scope="module")
def served() -> registry.Registry:
    """Loading checks base hash, template hash, heads and golden rows."""
    return loader.load(settings.read_settings(settings.EMBEDDED))


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
    """Written before the models were trained; at least 16 of 20."""
    triples = [json.loads(line) for line in TRIPLES.read_text().splitlines()]
    assert len(triples) == 20
    right = sum(
        score(served, model, t["prompt"], t["chosen"]) > score(served, model, t["prompt"], t["rejected"])
        for t in triples
    )
    assert right >= 16
