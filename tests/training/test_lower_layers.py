"""The layers below the adapter are computed once for each text: the same training, resumed, or refused by key."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from assay_service.scoring.architectures import ARCHITECTURES
from assay_service.scoring.head import Head
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.model import RewardModel
from assay_training.algorithms.folds import HELD_OUT
from assay_training.config.base import ConfigError, read
from assay_training.config.joint import JointConfig, has_several_heads
from assay_training.config.model import Lora
from assay_training.config.reward import RewardConfig
from assay_training.errors import RunStopped
from assay_training.models.lora import build_lora_config, find_layers
from assay_training.models.lower_layers import LowerLayers
from assay_training.reward_model.command import run
from assay_training.reward_model.joint import JointRun
from assay_training.reward_model.run import RewardRun
from assay_training.runs.directory import RunMismatch
from assay_training.runs.metrics import MetricsWriter
from assay_training.runs.states import StateStore
from tests import checkpoints
from tests.training import test_together, tiny
from tests.training.test_cross_validation import SOURCES, Run, write_data
from tests.training.test_full_disk import limited
from tests.training.test_lora import targets_of

CPU = torch.device("cpu")
PACKED = sorted(name for name, architecture in ARCHITECTURES.items() if architecture.packed)
OPTIMIZER = {"learning_rate": 0.02, "batch_prompts": 8, "epochs": 2, "compute_dtype": "float32", "checkpoint_steps": 4}
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


def fit(path: Path, data: Path, out: Path) -> list[torch.Tensor]:
    """Train only, and return the trained parameters."""
    if has_several_heads(path):
        joint = JointRun(read(path, JointConfig), data, out)
        return [parameter.detach() for parameter in joint._list_parameters(joint.fit())]
    reward = RewardRun(read(path, RewardConfig), data, out)
    return reward_parameters(reward.fit("model", reward.exclude_parts(HELD_OUT)), reward)


def reward_parameters(model: RewardModel, reward: RewardRun) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in model.get_parameters(reward.config.name)]


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows whenever a linear layer of the lowest layer of a base with a fresh adapter is computed."""
    passes: list[int] = []
    add = RewardModel.add_fresh_signal

    def watched(model: RewardModel, *arguments: Any) -> None:
        add(model, *arguments)
        lowest = find_layers(model.base)[1][0]
        linear = next(module for module in lowest.modules() if isinstance(module, torch.nn.Linear))
        linear.register_forward_hook(lambda *_: passes.append(1))

    monkeypatch.setattr(RewardModel, "add_fresh_signal", watched)
    return passes


@pytest.mark.parametrize(
    ("architecture", "joint", "dtype"),
    [
        ("llama", False, "float32"),
        ("llama", True, "float32"),
        ("bert", False, "float32"),
        ("bert", True, "bfloat16"),
        ("qwen2", False, "bfloat16"),
    ],
)
def test_stored_states_train_as_computed_ones(
    architecture: str, joint: bool, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = prepare(tmp_path, architecture, joint=joint, optimizer=OPTIMIZER | {"compute_dtype": dtype})
    passes = count_passes(monkeypatch)
    computed = fit(path, data, tmp_path / "computed")
    steps = [row["loss"] for row in read_rows(tmp_path / "computed")]
    every = len(passes)
    assert every >= len(steps)
    passes.clear()
    stored = fit(change(path, lower_layers="store"), data, tmp_path / "stored")
    # Two epochs, in which feedbackqa occurs twice: each text is computed once, in the fullest rows.
    assert 0 < len(passes) <= every / 4
    assert [row["loss"] for row in read_rows(tmp_path / "stored")] == pytest.approx(steps, rel=TOLERANCES[dtype])
    assert max(float((parameter - parameter.mean()).abs().max()) for parameter in computed) > 0.1
    for one, other in zip(stored, computed, strict=True):
        # AdamW moves a parameter by its learning rate, also where the gradient is hardly more than rounding.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3 if dtype == "float32" else 0.1)


def killed_at(step: int) -> Callable[[MetricsWriter, Any], None]:
    def log(_: MetricsWriter, row: Any) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    return log


@pytest.mark.parametrize("joint", [False, True], ids=["one head", "two heads"])
def test_a_killed_run_reuses_the_file_and_resumes_bit_for_bit(
    joint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = prepare(tmp_path, "llama", joint=joint, lower_layers="store")
    whole = fit(path, data, tmp_path / "whole")
    with monkeypatch.context() as broken:
        broken.setattr(MetricsWriter, "log", killed_at(5))
        with pytest.raises(KeyboardInterrupt):
            fit(path, data, tmp_path / "killed")
    written = tmp_path / "killed/state/lower_layers/states.bin"
    before = written.read_bytes()
    passes = count_passes(monkeypatch)
    resumed = fit(path, data, tmp_path / "killed")
    assert not passes
    assert written.read_bytes() == before
    assert all(map(torch.equal, resumed, whole))


def test_a_full_disk_or_a_kill_while_storing_loses_only_the_part_that_was_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = OPTIMIZER | {"micro_batch_tokens": 200}
    path, data = prepare(tmp_path, "llama", lower_layers="store", optimizer=optimizer)
    passes = count_passes(monkeypatch)
    whole = fit(path, data, tmp_path / "whole")
    every = len(passes)
    states = (tmp_path / "whole/state/lower_layers/states.bin").read_bytes()
    with limited(len(states) // 2 + 10), pytest.raises(RunStopped, match=r"states\.bin cannot be written: .*free disk"):
        fit(path, data, tmp_path / "full")
    folder = tmp_path / "full/state/lower_layers"
    half = (folder / "states.bin").read_bytes()
    assert len(half) == len(states) // 2 + 10
    with (folder / "index.txt").open("a") as index:
        index.write("4f")  # half a line
    passes.clear()
    assert all(map(torch.equal, fit(path, data, tmp_path / "full"), whole))
    assert every / 3 < len(passes) < 0.7 * every
    assert (folder / "states.bin").read_bytes() == states


def test_a_disk_without_room_stops_the_run_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, data = prepare(tmp_path, "llama", lower_layers="store")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(RunStopped, match=r"needs 0\.\d MB for hidden states, and its disk has 0\.0 MB free; free"):
        fit(path, data, tmp_path / "out")
    folder = tmp_path / "out/state/lower_layers"
    assert (folder / "states.bin").stat().st_size == 0
    monkeypatch.undo()
    fit(path, data, tmp_path / "out")
    (said,) = set(re.findall(r"hidden states of ([\d,]+) tokens in (.*): ", capsys.readouterr().err))
    tokens = int(said[0].replace(",", ""))
    assert said[1] == str(folder)
    assert (folder / "states.bin").stat().st_size == tokens * 32 * 4


@pytest.mark.parametrize("kept", [False, True], ids=["store", "keep"])
def test_the_file_is_removed_after_the_run_or_kept(kept: bool, tmp_path: Path) -> None:
    """With folds every training adds the texts that the others lack, and the model is served as any other."""
    path, data = prepare(
        tmp_path,
        "bert",
        lower_layers="keep" if kept else "store",
        mixture=[],
        split={"held_out": 0.2, "folds": 2, "test_folds": 2},
        optimizer=OPTIMIZER | {"epochs": 1},
    )
    run(path, data, tmp_path / "out")
    assert not (tmp_path / "out/state").exists()
    assert (tmp_path / "out/lower_layers/states.bin").is_file() is kept
    if kept:
        keys = (tmp_path / "out/lower_layers/index.txt").read_text().splitlines()[1:]
        assert len({key.split()[0] for key in keys}) == len(keys) == 96
    run(change(path, lower_layers="store" if kept else "keep"), data, tmp_path / "out")


@pytest.mark.parametrize("joint", [False, True], ids=["one head", "two heads"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": None}, r"lower_layers: store needs an adapter; lora: null trains all layers"),
        ({"layers": None}, r"lower_layers: store needs layers without an adapter below .* lora\.layers, without 0"),
        ({"layers": [1, 0]}, r"lower_layers: store needs layers without an adapter below .* lora\.layers, without 0"),
        ({"lower_layers": "disk"}, r"lower_layers: 'disk' is not one of 'compute', 'store' or 'keep'"),
    ],
)
def test_a_run_without_layers_below_is_refused_by_key(
    changes: dict[str, Any], message: str, joint: bool, tmp_path: Path
) -> None:
    path, _ = prepare(tmp_path, "llama", joint=joint, lower_layers="store")
    if "layers" in changes:
        changes = {"lora": yaml.safe_load(path.read_text())["lora"] | changes}
    with pytest.raises(ConfigError, match=message):
        read(change(path, **changes), JointConfig if joint else RewardConfig)


def test_an_architecture_without_packed_rows_is_refused(tmp_path: Path) -> None:
    path, data = prepare(tmp_path, "deberta-v2", lower_layers="store")
    with pytest.raises(ConfigError, match="lower_layers: store is not implemented for deberta-v2"):
        run(path, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(tmp_path: Path) -> None:
    path, data = prepare(tmp_path, "llama", lower_layers="store")
    with pytest.raises(AssertionError, match="lower_layers: store needs a run in one process; start it without a"):
        test_together.go(Run(path, data, tmp_path / "out"), 2)


def test_states_of_another_base_or_dtype_and_a_short_file_are_refused(tmp_path: Path) -> None:
    store = StateStore(tmp_path, {"base": "a"}, 3, torch.float32)
    store.append({"x": torch.ones(2, 3), "y": torch.zeros(1, 3)})
    reopened = StateStore(tmp_path, {"base": "a"}, 3, torch.float32)
    assert "x" in reopened
    assert "z" not in reopened
    assert torch.equal(reopened.read(["y", "x"]), torch.tensor([[0.0] * 3, [1.0] * 3, [1.0] * 3]))
    for identity, size, dtype in (({"base": "b"}, 3, torch.float32), ({"base": "a"}, 3, torch.bfloat16)):
        with pytest.raises(RunStopped, match="of another base, layer or dtype; remove this folder"):
            StateStore(tmp_path, identity, size, dtype)
    os.truncate(tmp_path / "states.bin", 30)
    with pytest.raises(RunStopped, match=r"states\.bin is shorter than its index says; remove the folder"):
        StateStore(tmp_path, {"base": "a"}, 3, torch.float32)


def test_a_run_that_computes_them_is_not_resumed_with_stored_ones(tmp_path: Path) -> None:
    path, data = prepare(tmp_path, "llama")
    RewardRun(read(path, RewardConfig), data, tmp_path / "out")
    with pytest.raises(RunMismatch, match=r'config\.lower_layers was null and is "store"'):
        RewardRun(read(change(path, lower_layers="store"), RewardConfig), data, tmp_path / "out")
