"""Presets of gated heads: each starts and scores as its own code, on a tiny checkpoint with the published tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from assay_service import create_app, preset
from assay_service.cli import app
from tests.service import test_networks as networks
from tests.service.test_presets import COMPLETION, GATED, PROMPT, make_settings, make_tokenizer

HEADS = {
    "armorm-llama3-8b-v0.1": "ArmoRM",
    "qrm-llama3-8b": "QRM",
    "qrm-llama3.1-8b": "QRM",
    "qrm-llama3.1-8b-v2": "QRM",
    "qrm-gemma-2-27b": "QRM-Gemma",
    "urm-llama-3-8b": "URM",
    "urm-llama-3.1-8b": "URM",
    "ldl-reward-gemma-2-27b-v0.1": "LDL",
}


def test_every_gated_preset_is_here() -> None:
    assert set(HEADS) == set(GATED)


@pytest.mark.parametrize("name", ["armorm-llama3-8b-v0.1", "qrm-gemma-2-27b", "urm-llama-3-8b", "qrm-llama3-8b"])
def test_a_gated_preset_scores_as_its_own_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = preset.read(name)
    fast = make_tokenizer(known)
    monkeypatch.setattr(networks, "FAST", fast)
    monkeypatch.setattr(networks, "GATE", known.signal.get("head", {}).get("gate", ""))
    base, head = networks.save(tmp_path, HEADS[name])
    base.set_attn_implementation("eager")
    keys = {"preset": name, "base": "rm", "max_length": 256}
    settings = make_settings(tmp_path, rm=keys, third={**keys, "output": 2})
    with TestClient(create_app(settings)) as client:
        items = [{"prompt": PROMPT, "completion": COMPLETION}]
        ids = client.post("/v1/render", json={"items": items}).json()["data"][0]["signals"]["rm"]["ids"]
        both = {"items": items, "weights": {"rm": 1.0, "third": 0.5}}
        values: dict[str, Any] = client.post("/v1/score", json=both).json()["data"][0]["signals"]
        metrics = client.get("/metrics").text
    with torch.inference_mode():
        expected = head.read(base(input_ids=torch.tensor([ids])).last_hidden_state[0], ids)
    assert values["rm"]["logit"] == pytest.approx(expected["score"][0], abs=2e-5)
    # An output beside the preset keeps its gate, so that both signals are one forward pass.
    assert values["third"]["logit"] == pytest.approx(expected["third"][0], abs=2e-5)
    assert 'assay_forward_seconds_count{signal="rm+third"' in metrics


def test_ldl_reward_is_converted_by_its_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ldl-reward-gemma-2-27b-v0.1"
    monkeypatch.setattr(networks, "FAST", make_tokenizer(preset.read(name)))
    base, head = networks.save(tmp_path, HEADS[name])
    base.set_attn_implementation("eager")
    source = (tmp_path / "rm").rename(tmp_path / "source")
    weights = source / "model.safetensors"
    bare = {n.removeprefix("model."): t for n, t in load_file(weights).items() if n.startswith("model.")}
    save_file(bare, weights, metadata={"format": "pt"})
    for part in ("regression_layer", "gating_layer"):
        torch.save(getattr(head, part).state_dict(), source / f"{part}.pt")
    done = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "rm"), "--preset", name])
    # The small base has fewer positions than the published one, which the report after the conversion says.
    assert done.output.count("problem") == 1
    assert "max_length: 8192 is more than the checkpoint's 256" in done.output
    signal = {"preset": name, "base": "rm", "max_length": 256}
    with TestClient(create_app(make_settings(tmp_path, rm=signal))) as client:
        items = [{"prompt": PROMPT, "completion": COMPLETION}]
        ids = client.post("/v1/render", json={"items": items}).json()["data"][0]["signals"]["rm"]["ids"]
        score = client.post("/v1/score", json={"items": items}).json()["data"][0]["score"]
    with torch.inference_mode():
        expected = head.read(base(input_ids=torch.tensor([ids])).last_hidden_state[0], ids)["score"]
    assert score == pytest.approx(expected[0], abs=2e-5)
