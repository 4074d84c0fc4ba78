"""The layers below the adapter are computed once for each text: the same training, resumed, or refused by key."""

import json
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from assay_service.scoring.architectures import ARCHITECTURES
from assay_service.scoring.head import Head
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.model import RewardModel
from assay_training.config.base import ConfigError, read
from assay_training.config.joint import JointConfig
from assay_training.config.model import Lora
from assay_training.config.reward import RewardConfig
from assay_training.errors import RunStopped
from assay_training.models.lora import build_lora_config
from assay_training.models.lower_layers import LowerLayers
from assay_training.reward_model.command import run
from assay_training.runs.states import StateStore
from tests import checkpoints
from tests.training import tiny
from tests.training.test_cross_validation import SOURCES, write_data
from tests.training.test_full_disk import limited
from tests.training.test_lora import targets_of

CPU = torch.device("cpu")
PACKED = sorted(name for name, architecture in ARCHITECTURES.items() if architecture.packed)
OPTIMIZER = {"learning_rate": 0.02, "batch_prompts": 8, "epochs": 3, "compute_dtype": "float32", "checkpoint_steps": 2}
# Rows of other lengths may be rounded otherwise: in fp32 relative to losses of about 0.7, and in bf16 by its own steps.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.02}


def fresh(directory: Path, architecture: str, layers: list[int], count: int = 4) -> RewardModel:
    """A model of `count` layers with a fresh signal `s`, whose adapter and head are not zero."""
    fast = checkpoints.tokenizer_of(architecture)
    checkpoints.save(directory, checkpoints.classifier(architecture, fast, num_hidden_layers=count).base_model, fast)
    model = RewardModel.load(directory, torch.float32, CPU)
    head = Head.fresh(model.hidden_size, torch.Generator().manual_seed(0), bias=model.architecture.head_bias)
    lora = Lora(r=2, alpha=4, target_modules=targets_of(architecture), layers=layers)
    model.add_fresh_signal("s", head, build_lora_config(lora, model.base))
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.base.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
    return model


def draw_sequences() -> list[TokenSequence]:
    """Three sequences, the first two with the same prompt."""
    draw = torch.Generator().manual_seed(1)
    made = [tuple(torch.randint(8, 260, (n,), generator=draw).tolist()) for n in (40, 70, 7)]
    prompts = [(5, 6, 7), (5, 6, 7), (9, 5)]
    return [
        TokenSequence((*prompt, *ids), len(prompt), Span(len(prompt), len(prompt) + len(ids)))
        for prompt, ids in zip(prompts, made, strict=True)
    ]


def compute(model: RewardModel, sequences: list[TokenSequence]) -> list[torch.Tensor]:
    """The logits and the gradients of the adapter."""
    logits = model.logits(sequences, "s")
    trained = [parameter for parameter in model.base.parameters() if parameter.requires_grad]
    return [logits.detach(), *torch.autograd.grad(logits.sum(), trained)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", PACKED)
def test_stored_states_give_the_bits_of_the_row_that_they_come_from(
    architecture: str, dtype: str, tmp_path: Path
) -> None:
    """Positions, rotations, windows and segments of the upper layers are those of a whole forward pass."""
    model, sequences = fresh(tmp_path, architecture, [2, 3]), draw_sequences()
    lower = LowerLayers(model, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        whole = compute(model, sequences)
        with lower.record() as found, torch.no_grad():
            model.pooled(sequences, "s")
        assert set(found) == {key for sequence in sequences for key in lower.identify(sequence)}
        assert len(found) == (5 if model.shares_prompts else 3)
        with lower.replace(lambda keys: torch.cat([found[key] for key in keys])):
            stored = compute(model, sequences)
        again = compute(model, sequences)
    assert all(map(torch.equal, stored, whole))
    assert all(map(torch.equal, again, whole))


@pytest.mark.parametrize("architecture", PACKED)
def test_states_fit_into_any_other_row(architecture: str, tmp_path: Path) -> None:
    model, sequences = fresh(tmp_path, architecture, [3, 1]), draw_sequences()
    lower, found = LowerLayers(model, 1), dict[str, torch.Tensor]()
    for sequence in sequences:
        with lower.record() as alone, torch.no_grad():
            model.pooled([sequence], "s")
        found |= alone
    with lower.replace(lambda keys: torch.cat([found[key] for key in keys])):
        stored = compute(model, sequences[::-1])
    for one, other in zip(stored, compute(model, sequences[::-1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_token_before_a_part_or_its_type_or_the_border_is_another_key(tmp_path: Path) -> None:
    def find(architecture: str, *sequences: TokenSequence) -> list[list[str]]:
        lower = LowerLayers(fresh(tmp_path / architecture, architecture, [3]), 3)
        return [list(lower.identify(sequence)) for sequence in sequences]

    span = Span(4, 5)
    plain, prompt, border = find(
        "llama",
        TokenSequence((5, 6, 7, 8, 9), 2, span),
        TokenSequence((4, 6, 7, 8, 9), 2, span),
        TokenSequence((5, 6, 7, 8, 9), 3, span),
    )
    assert len({*plain, *prompt, *border}) == 6
    plain, typed = find("bert", TokenSequence((5, 6, 7), 2, Span(0, 1)), TokenSequence((5, 6, 7), 2, Span(0, 1), 1))
    assert plain != typed


def test_a_trained_layer_below_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layers\.1\..*lora_A.* is trained"):
        LowerLayers(fresh(tmp_path, "llama", [1, 3]), 2)


def prepare(root: Path, architecture: str, *, joint: bool = False, **changes: Any) -> tuple[Path, Path]:
    """The configuration of a run on a base of four layers, and its data."""
    fast = checkpoints.tokenizer_of(architecture)
    whole = checkpoints.classifier(architecture, fast, num_hidden_layers=4)
    checkpoints.save(root / "base", whole.base_model, fast)
    write_data(root / "data")
    path = tiny.write_config(
        root / "run.yaml",
        root / "base",
        template_text=fast.chat_template,
        **{
            "sources": SOURCES["preference"],
            "mixture": [{"step": "repeat", "times": {"feedbackqa": 2}}],
            "score_position": "completion",
            "split": {"held_out": 0.2},
            "optimizer": OPTIMIZER,
            "lora": {"r": 2, "alpha": 4, "target_modules": targets_of(architecture), "layers": [2, 3]},
            **changes,
        },
    )
    if joint:
        config = yaml.safe_load(path.read_text())
        kept = ("objective", "sources", "golden", "mixture")
        heads = {"preference": {key: config.pop(key) for key in kept}}
        heads["absolute"] = {"objective": {"kind": "absolute"}, "sources": SOURCES["absolute"]}
        path.write_text(yaml.safe_dump({**config, "heads": heads}, sort_keys=False))
    return path, root / "data"


def change(path: Path, **changes: Any) -> Path:
    """A configuration beside another one, with other keys."""
    other = path.with_name("changed.yaml")
    other.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes, sort_keys=False))
    return other


def read_rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("joint", [False, True], ids=["one head", "two heads"])
@pytest.mark.parametrize("architecture", ["llama", "bert", "qwen2"])
def test_a_run_with_stored_states_trains_as_one_that_computes_them(
    architecture: str, joint: bool, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = prepare(tmp_path, architecture, joint=joint, optimizer=OPTIMIZER | {"compute_dtype": dtype})
    passes = count_passes(monkeypatch, 0)
    run(path, data, tmp_path / "computed")
    every = len(passes)
    passes.clear()
    run(change(path, lower_layers="store"), data, tmp_path / "stored")
    assert len(passes) < every / 2
    rows = [read_rows(tmp_path / name) for name in ("computed", "stored")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    tolerance = TOLERANCES[dtype]
    for one, other in zip(*rows, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)
    adapters = [load_file(tmp_path / name / "checkpoint/adapter_model.safetensors") for name in ("computed", "stored")]
    moved = max(float(tensor.abs().max()) for name, tensor in adapters[0].items() if "lora_B" in name)
    assert moved > 0.05  # the comparison below sees a trained adapter
    for name, tensor in adapters[0].items():
        # AdamW moves a parameter by its learning rate, whatever the size of its gradient.
        torch.testing.assert_close(adapters[1][name], tensor, rtol=0, atol=1e-3 if dtype == "float32" else 0.15)
    assert not (tmp_path / "stored/state").exists()


def count_passes(monkeypatch: pytest.MonkeyPatch, layer: int) -> list[int]:
    """A list that grows by one whenever a packed layer with this index is computed on torch's operators."""
    passes: list[int] = []
    add = RewardModel.add_fresh_signal

    def watched(model: RewardModel, *arguments: Any) -> None:
        add(model, *arguments)
        name = "encoder.layer" if model.base.config.model_type == "bert" else "layers"
        first = model.base.get_submodule(f"{name}.{layer}")
        inner = next(module for module in first.modules() if isinstance(module, torch.nn.Linear))
        inner.register_forward_hook(lambda *_: passes.append(1))

    monkeypatch.setattr(RewardModel, "add_fresh_signal", watched)
    return passes
