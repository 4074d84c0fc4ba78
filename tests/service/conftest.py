"""A tiny service: two LoRA signals on one Llama base, and a BERT classifier."""

import copy
from typing import Any

import pytest
import torch

from assay_service import settings
from assay_service.scoring.kernels import build
from tests import checkpoints


@pytest.fixture(params=["assay", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test twice: on the kernels, and as on a machine that cannot have them."""
    if request.param == "torch":
        monkeypatch.setattr(build, "load_or_explain", lambda *_: "there is no compiler")
    elif (reason := build.load_or_explain(torch.float32, torch.device("cpu"))) is not None:
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Checkpoints on disk, their oracles, and the settings that serve them."""
    root = tmp_path_factory.mktemp("tiny")
    fast = checkpoints.decoder_tokenizer()
    base = checkpoints.classifier("llama", fast)
    checkpoints.save(root / "base", base, fast)
    claims: dict[str, Any] = {
        "score_position": "last_token",
        "eos": "template",
        "unfinished": "score",
        "max_length": 128,
    }
    oracles = {}
    for seed, (name, kind) in enumerate((("pref", "preference"), ("abs", "absolute")), start=1):
        _, oracles[name] = checkpoints.save_adapter(
            root / name, copy.deepcopy(base), seed=seed, kind=kind, mean=0.5 * seed, std=2.0, **claims
        )
    encoder = checkpoints.encoder_tokenizer()
    oracles["enc"] = checkpoints.classifier("bert", encoder, seed=3)
    checkpoints.save(root / "enc", oracles["enc"], encoder)
    (root / "service.yaml").write_text(CONFIG)
    return {"settings": settings.read_settings(root / "service.yaml"), "oracles": oracles, "root": root}


CONFIG = """
signals:
  pref: {base: base, adapter: pref}
  abs: {base: base, adapter: abs}
  enc: {base: enc, kind: preference, eos: template, unfinished: error, token_types: zero}
blends:
  mix: {weights: {pref: 0.25, abs: 0.75}, description: a quarter and three quarters}
  mix_std: {weights: {pref: 0.25, abs: 0.75}, standardise: manifest}
default: mix
limits: {max_items: 64, max_body_bytes: 250000, max_item_chars: 150000}
"""
