"""ModernBERT's classifier: a dense layer and a norm before the head, which read the first token or the mean of all."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from assay_service import loader, resolve, settings
from assay_service.errors import StartError
from assay_service.scoring.item import Item
from tests import checkpoints
from tests.service.test_parity import items

FORMS: dict[str, dict[str, Any]] = {
    "first token": {},
    "mean": {"classifier_pooling": "mean"},
    "no biases": {"classifier_bias": False, "norm_bias": False},
    "another activation": {"classifier_activation": "silu", "classifier_pooling": "mean"},
    "another epsilon": {"norm_eps": 0.1},
}


def configuration(root: Path, **signal: Any) -> settings.Settings:
    declared = {"base": "base", "kind": "preference", "eos": "template", "unfinished": "score", **signal}
    raw = {"signals": {"s": declared}, "default": "s", "directory": root}
    return settings.Settings.model_validate(raw)


def scores(root: Path, **signal: Any) -> tuple[list[float], list[tuple[int, ...]]]:
    """The logits of some items as the service loads the checkpoint, and the token ids."""
    registry = loader.load(configuration(root, **signal))
    assert registry.invariant == {"s": True}
    served = registry.signals["s"]
    sequences = [served.renderer.render(item).sequence for item in items()]
    with torch.inference_mode():
        return served.model.logits(sequences, "s").tolist(), [sequence.ids for sequence in sequences]


def save(root: Path, **more: Any) -> Any:
    fast = checkpoints.encoder_tokenizer()
    reference = checkpoints.classifier("modernbert", fast, num_hidden_layers=3, **more)
    with torch.no_grad():  # at first all norms are 1 and all biases 0
        for name, parameter in reference.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    checkpoints.save(root / "base", reference, fast)
    return reference


@pytest.mark.parametrize("form", FORMS)
def test_a_classifier_scores_as_in_transformers(form: str, tmp_path: Path) -> None:
    reference = save(tmp_path, **FORMS[form])
    got, ids = scores(tmp_path)
    assert got == pytest.approx([checkpoints.oracle(reference, one) for one in ids], abs=1e-5)
    position = resolve.resolve(configuration(tmp_path))["s"].rules.score_position
    assert position == ("mean_pooler" if "classifier_pooling" in FORMS[form] else "pooler")
    if form == "mean":
        assert scores(tmp_path, score_position="pooler")[0] != pytest.approx(got, abs=0.01)


@pytest.mark.parametrize(
    "lora", [{}, {"modules_to_save": ["head", "classifier"]}], ids=["head of the base", "own head"]
)
def test_an_adapter_brings_its_own_layers_before_the_head_or_has_those_of_the_base(
    lora: dict[str, Any], tmp_path: Path
) -> None:
    base = save(tmp_path)
    _, oracle = checkpoints.save_adapter(tmp_path / "adapter", copy.deepcopy(base), lora=lora)
    got, ids = scores(tmp_path, adapter="adapter")
    assert got == pytest.approx([checkpoints.oracle(oracle, one) for one in ids], abs=1e-5)
    assert got != pytest.approx([checkpoints.oracle(base, one) for one in ids], abs=0.01)


@pytest.mark.parametrize("lost", ["head.dense.weight", "head.norm.weight"])
def test_a_checkpoint_without_a_layer_before_its_head_is_refused(lost: str, tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "base/model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if name != lost}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(StartError, match=rf"has no tensor .*{lost}.*, which score_position pooler reads"):
        loader.load(configuration(tmp_path))


def test_the_norm_before_the_head_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    save(tmp_path)
    before = loader.load(configuration(tmp_path)).signals["s"].provenance.head_sha256
    path = tmp_path / "base/model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"head.norm.bias": tensors["head.norm.bias"] + 1}, path, metadata={"format": "pt"})
    assert loader.load(configuration(tmp_path)).signals["s"].provenance.head_sha256 != before


@pytest.mark.parametrize(("key", "value"), [("classifier_pooling", 3), ("norm_eps", "small")])
def test_a_wrong_value_is_named(key: str, value: Any, tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "base/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(StartError, match=f"{key} must be "):
        loader.load(configuration(tmp_path))


def test_a_mean_is_one_of_all_tokens(tmp_path: Path) -> None:
    save(tmp_path, classifier_pooling="mean")
    renderer = loader.load(configuration(tmp_path)).signals["s"].renderer
    sequence = renderer.render(Item.of("How?", "Mix flour.")).sequence
    assert (sequence.score.start, sequence.score.end) == (0, len(sequence.ids))
