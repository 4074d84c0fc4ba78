"""What `assay inspect` writes starts once its empty keys are filled, for every kind of checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from assay_service.declaration import build_declaration
from assay_service.errors import StartError
from assay_service.inspection import Inspection, inspect
from assay_service.loader import load_resolved
from assay_service.registry import Registry
from assay_service.resolve import read_resolved
from tests import checkpoints

FAST = checkpoints.decoder_tokenizer()
STEPS = checkpoints.decoder_tokenizer()
STEPS.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|step|>"]})
CHOICES: dict[str, Any] = {
    "kind": "absolute",
    "eos": "template",
    "unfinished": "score",
    "score_position": "last_token",
    "token_types": "zero",
    "output": 0,
    "max_length": 100,
    "pad_token_id": FAST.pad_token_id,
    "head": {"tokens": ["1", "0"]},
    "steps": {"delimiter": "\n", "token": "<|step|>"},
    "aggregate": "min",
    "dtype": "float32",
    "code": "ignore",
}
# Keys that every checkpoint of another trainer leaves open.
OPEN = {"kind", "eos", "unfinished"}


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    held = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in held.items() if value is not None}))


def rename(directory: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the tensors of a checkpoint."""
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def classifier(root: Path, architecture: str = "llama", **config: Any) -> Path:
    fast = checkpoints.tokenizer_of(architecture)
    return checkpoints.save(root / "rm", checkpoints.classifier(architecture, fast, **config), fast)


def changed_config(root: Path, **changes: Any) -> Path:
    directory = classifier(root)
    edit(directory / "config.json", **changes)
    return directory


def language_model(root: Path, architecture: str, *, tied: bool) -> Path:
    model = checkpoints.language_model(architecture, FAST, tie_word_embeddings=tied)
    return checkpoints.save(root / "rm", model, FAST)


def adapter(root: Path, *, head: bool = True, **config: Any) -> Path:
    fast = checkpoints.decoder_tokenizer()
    base = checkpoints.save(root / "base", checkpoints.classifier("llama", fast, **config), fast)
    if not head:
        base = checkpoints.save(root / "lm", checkpoints.language_model("llama", fast), fast)
    directory, _ = checkpoints.save_adapter(root / "rm", checkpoints.classifier("llama", fast, **config))
    edit(directory / "adapter_config.json", base_model_name_or_path=str(base))
    if not head:
        path = directory / "adapter_model.safetensors"
        save_file({name: tensor for name, tensor in load_file(path).items() if "lora" in name}, path)
        edit(directory / "adapter_config.json", task_type="CAUSAL_LM", modules_to_save=None)
    return directory


def adapter_with_another_pad(root: Path) -> Path:
    directory = adapter(root)
    FAST.save_pretrained(directory)
    edit(directory / "tokenizer_config.json", pad_token="<|im_start|>")
    return directory


def value_head_file(root: Path) -> Path:
    directory = language_model(root, "llama", tied=False)
    head = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.randn(1)}
    save_file(head, directory / "value_head.safetensors")
    return directory


def openrlhf(root: Path) -> Path:
    directory = changed_config(root, architectures=["RewardModel"], value_head_prefix="mine")
    rename(directory, lambda tensors: {name.replace("score.", "mine."): value for name, value in tensors.items()})
    return directory


def two_layers(root: Path) -> Path:
    directory = changed_config(root, architectures=["GRewardModel"])
    inner = {"v_head.0.weight": torch.randn(8, 32), "v_head.0.bias": torch.randn(8)}
    outer = {"v_head.2.weight": torch.randn(1, 8), "v_head.2.bias": torch.randn(1)}
    rename(directory, lambda tensors: {n: t for n, t in tensors.items() if "score" not in n} | inner | outer)
    return directory


def steps(root: Path) -> Path:
    model = checkpoints.classifier("llama", STEPS, num_labels=2)
    directory = checkpoints.save(root / "rm", model, STEPS)
    edit(directory / "config.json", architectures=["LlamaForTokenClassification"])
    return directory


# Kind of checkpoint, and the keys that its report leaves empty besides `OPEN`.
KINDS: dict[str, tuple[Callable[[Path], Path], set[str]]] = {
    "a classifier": (classifier, set()),
    "BERT": (lambda root: classifier(root, "bert"), {"token_types"}),
    "RoBERTa": (lambda root: classifier(root, "roberta"), set()),
    "a mean of ModernBERT": (lambda root: classifier(root, "modernbert", classifier_pooling="mean"), set()),
    "several outputs": (lambda root: classifier(root, num_labels=3), {"output"}),
    "several outputs of BERT": (lambda root: classifier(root, "bert", num_labels=2), {"output", "token_types"}),
    "a language model": (lambda root: language_model(root, "qwen2", tied=False), {"head", "score_position"}),
    "a tied language model": (lambda root: language_model(root, "qwen2", tied=True), {"head", "score_position"}),
    "GPT-NeoX": (lambda root: language_model(root, "gpt_neox", tied=False), {"head", "score_position"}),
    "a LoRA adapter": (adapter, set()),
    "an adapter of several outputs": (lambda root: adapter(root, num_labels=3), {"output"}),
    "an adapter without a head": (lambda root: adapter(root, head=False), {"head", "score_position"}),
    "an adapter with another pad": (adapter_with_another_pad, {"pad_token_id"}),
    "a value head in a file": (value_head_file, {"score_position"}),
    "OpenRLHF": (openrlhf, {"score_position"}),
    "two layers": (two_layers, {"score_position"}),
    "no length": (lambda root: changed_config(root, max_position_embeddings=None), {"max_length"}),
    "a dtype that is not served": (lambda root: changed_config(root, dtype="float64"), {"dtype"}),
    "remote code": (lambda root: changed_config(root, auto_map={"AutoModel": "a.B"}), {"code"}),
    "steps": (steps, {"output", "score_position"}),
}


def fill(report: Inspection) -> tuple[dict[str, Any], set[str]]:
    """Return the YAML of a report with its empty keys filled, and the names of these keys."""
    raw = yaml.safe_load(report.text)
    empty = {key for signal in raw["signals"].values() for key, value in signal.items() if value is None}
    for signal in raw["signals"].values():
        signal.update({key: CHOICES[key] for key in empty})
    return raw, empty


def start(raw: object) -> Registry:
    return load_resolved(*read_resolved(raw, Path("/"), "service.yaml"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_yaml_of_every_kind_of_checkpoint_starts_once_its_empty_keys_are_filled(kind: str, tmp_path: Path) -> None:
    make, more = KINDS[kind]
    directory = make(tmp_path)
    report = inspect(directory, {})
    raw, empty = fill(report)
    assert report.problems == ()
    assert empty == OPEN | more
    for key in empty:
        with pytest.raises(StartError):  # none of them is asked for without need
            start({"signals": {"rm": {k: v for k, v in raw["signals"]["rm"].items() if k != key}}})
    (signal,) = start(raw).signals.values()
    assert signal.renderer.rules.eos == "template"


def test_steps_are_asked_for_once_the_position_is_declared(tmp_path: Path) -> None:
    raw, empty = fill(inspect(steps(tmp_path), {"score_position": "steps"}))
    assert empty == OPEN | {"output", "steps", "aggregate"}
    (signal,) = start(raw).signals.values()
    assert signal.renderer.rules.steps is not None
    assert "`steps` for process rewards" in inspect(tmp_path / "rm", {}).text


def test_several_heads_on_one_trunk_are_served_as_a_signal_each(tmp_path: Path) -> None:
    """The checkpoint of a joint run, also without the run's own YAML."""
    numbers: dict[str, Any] = {"mean": 0.0, "std": 1.0}
    outputs = [{"name": "helpful", "kind": "preference", **numbers}, {"name": "safe", "kind": "absolute", **numbers}]
    claims: dict[str, Any] = {"score_position": "eos", "eos": "template", "unfinished": "score", "max_length": 100}
    model = checkpoints.classifier("llama", FAST, num_labels=2)
    checkpoints.save(tmp_path / "run" / "checkpoint", model, FAST, outputs=outputs, **claims)
    report = inspect(tmp_path / "run", {})
    assert "outputs         helpful (preference), safe (absolute)" in report.text
    assert "reasoning" not in report.text  # no file says it
    assert fill(report)[1] == set()
    for raw in (yaml.safe_load(report.text), build_declaration(tmp_path / "run", {})):
        registry = start(raw)
        assert {name: signal.kind for name, signal in registry.signals.items()} == {
            "helpful": "preference",
            "safe": "absolute",
        }
        assert registry.default == "helpful"
    assert list(build_declaration(tmp_path / "run", {"output": "safe"})["signals"]) == ["run"]


def test_two_heads_are_a_problem_that_no_key_solves(tmp_path: Path) -> None:
    directory = classifier(tmp_path)
    rename(directory, lambda tensors: tensors | {"v_head.weight": torch.randn(1, 32)})
    (problem,) = inspect(directory, {}).problems
    assert "there are several heads: score.weight, v_head.weight; a signal has only one" in problem


def test_positions_that_depend_on_the_batch_are_a_problem_before_anything_is_loaded(tmp_path: Path) -> None:
    for spelling in ({"rope_type": "dynamic", "factor": 2.0}, {"type": "dynamic", "factor": 2.0}):
        (tmp_path / "rm").mkdir(exist_ok=True)
        (problem,) = inspect(changed_config(tmp_path, rope_scaling=spelling, rope_parameters=None), {}).problems
        assert "rope_type 'dynamic' is not served" in problem
        assert "remove this scaling from a copy of config.json, which gives the same scores" in problem
