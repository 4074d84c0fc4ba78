"""Pairs of texts for encoders with token types, against `tokenizer(prompt, reply)` and transformers' classifiers."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from assay_service import loader, resolve, settings
from assay_service.api.app import create_app
from assay_service.errors import StartError
from assay_service.scoring import manifest
from assay_service.scoring.item import Item
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from tests import checkpoints

PAIRS = [
    ("How do I bake bread?", "Mix flour and water."),
    ("bread?", "I wait for it."),
    ("Hi", "No"),
    ("1 2", "0"),
]


def configuration(directory: Path, **signal: Any) -> settings.Settings:
    declared = {"base": str(directory), "kind": "preference", "eos": "template", "unfinished": "score", **signal}
    return settings.Settings.model_validate({"signals": {"s": declared}, "default": "s", "directory": directory})


@pytest.mark.parametrize(("architecture", "more"), [("bert", {}), ("deberta-v2", {"type_vocab_size": 2})])
def test_a_pair_scores_as_transformers_scores_tokenizer_of_prompt_and_reply(
    architecture: str, more: dict[str, int], tmp_path: Path
) -> None:
    fast = checkpoints.pair_tokenizer()
    reference = checkpoints.classifier(architecture, fast, **more)
    configured = configuration(checkpoints.save(tmp_path, reference, fast), token_types="second_after_sep")
    reference.set_attn_implementation("eager")
    encoded = [fast(prompt, reply, return_tensors="pt", return_token_type_ids=True) for prompt, reply in PAIRS]
    with torch.inference_mode():
        expected = [reference(**pair).logits.item() for pair in encoded]
        zeros = [checkpoints.oracle(reference, tuple(pair["input_ids"][0].tolist())) for pair in encoded]
    assert max(abs(a - b) for a, b in zip(expected, zeros, strict=True)) > 0.01  # the types matter at all
    items = [{"prompt": prompt, "completion": reply} for prompt, reply in PAIRS]
    with TestClient(create_app(configured, on_failure=lambda: None)) as client:
        deadline = time.monotonic() + 120
        while client.get("/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        rows = client.post("/v1/score", json={"items": items}).json()["data"]
        rendered = client.post("/v1/render", json={"items": items}).json()["data"]
        info = client.get("/info").json()["signals"]["s"]
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5)
    assert (info["token_types"], info["invariant"]) == ("second_after_sep", True)
    for row, pair in zip(rendered, encoded, strict=True):
        shown = row["signals"]["s"]
        assert shown["ids"] == pair["input_ids"][0].tolist()
        assert shown["token_types"] == pair["token_type_ids"][0].tolist()


def test_a_batch_of_pairs_has_the_bits_of_each_alone_on_both_kernels(kernels: str, tmp_path: Path) -> None:
    fast = checkpoints.pair_tokenizer()
    directory = checkpoints.save(tmp_path, checkpoints.classifier("bert", fast), fast)
    fingerprints = set()
    for types in ("zero", "second_after_sep"):
        served = loader.load(configuration(directory, token_types=types))
        fingerprints.add(served.fingerprint())
        signal = served.signals["s"]
        sequences = [signal.renderer.render(Item.of(*pair)).sequence for pair in PAIRS]
        with torch.inference_mode():
            together = signal.model.logits(sequences, "s").tolist()
            alone = [signal.model.logits([sequence], "s").item() for sequence in sequences]
        assert together == alone
        assert signal.model.kernels.name == kernels
    assert len(fingerprints) == 2


def test_a_base_with_token_types_starts_only_where_they_are_known(tmp_path: Path) -> None:
    fast = checkpoints.pair_tokenizer()
    directory = checkpoints.save(tmp_path, checkpoints.classifier("bert", fast), fast)
    with pytest.raises(StartError, match=r"token_types: declare it; the base has 2 token types"):
        resolve.resolve(configuration(directory))
    (directory / "assay.json").write_text('{"kind": "preference"}')  # of a run: trained with zeros
    assert resolve.resolve(configuration(directory))["s"].rules.token_types == "zero"
    with pytest.raises(StartError, match=r"token_types: declared 'second_after_sep', but .* says 'zero'"):
        resolve.resolve(configuration(directory, token_types="second_after_sep"))


@pytest.mark.parametrize(
    ("architecture", "more"), [("roberta", {}), ("deberta-v2", {}), ("bert", {"type_vocab_size": 1})]
)
def test_a_base_without_token_types_needs_no_declaration(
    architecture: str, more: dict[str, int], tmp_path: Path
) -> None:
    fast = checkpoints.pair_tokenizer()
    directory = checkpoints.save(tmp_path, checkpoints.classifier(architecture, fast, **more), fast)
    assert resolve.resolve(configuration(directory))["s"].rules.token_types is None
    with pytest.raises(StartError, match="token_types: the base has only one token type"):
        resolve.resolve(configuration(directory, token_types="second_after_sep"))


def test_the_embedded_models_claim_zero_by_their_manifests() -> None:
    for name in ("preference", "absolute"):
        assert manifest.read(settings.EMBEDDED.parent / name).token_types == "zero"


def test_the_reply_keeps_its_type_when_the_separator_is_cut() -> None:
    fast = checkpoints.pair_tokenizer()
    rules = RenderRules(checkpoints.PAIR, 10, "pooler", "template", "score", token_types="second_after_sep")
    renderer = Renderer(fast, rules, len(fast))
    assert renderer.render(Item.of("1", "0")).sequence.types == [0, 0, 0, 1, 1]  # [CLS] 1 [SEP] 0 [SEP]
    whole_reply = renderer.render(Item.of("12345", "0123456"), "prompt_left").sequence
    assert whole_reply.ids[:2] == (fast.cls_token_id, fast.sep_token_id)
    assert whole_reply.types == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    without_separator = renderer.render(Item.of("12345", "01234567"), "prompt_left").sequence
    assert without_separator.ids.count(fast.sep_token_id) == 1
    assert without_separator.types == [0, 1, 1, 1, 1, 1, 1, 1, 1, 1]


def test_a_template_without_separator_refuses_second_after_sep() -> None:
    fast = checkpoints.pair_tokenizer()
    template = "[CLS]{% for m in messages %}{{ m['content'] }} {% endfor %}[SEP]"
    with pytest.raises(StartError, match="the template prints no separator token"):
        Renderer(fast, RenderRules(template, 99, "pooler", "template", "score", token_types="second_after_sep"), 400)
