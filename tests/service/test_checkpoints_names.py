"""Heads and prefixes under other trainers' names: served where that is a renaming, else named."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from assay_service.errors import StartError
from assay_service.scoring import names
from assay_service.scoring.checkpoint import read_dense, read_head
from assay_service.scoring.files import explain_pickled, list_weight_files
from assay_service.scoring.head import Head, checked
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.missing_head import why_no_head
from assay_service.scoring.model import RewardModel
from tests import checkpoints

IDS = (5, 9, 77, 30, 12)
Tensors = dict[str, torch.Tensor]
LORA = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 32)}


def rewritten(directory: Path, change: Callable[[Tensors], Tensors], **config: Any) -> float:
    """Write a tiny Llama reward model whose tensors `change` renames; return transformers' logit before that."""
    fast = checkpoints.decoder_tokenizer()
    model = checkpoints.classifier("llama", fast, **config)
    checkpoints.save(directory, model, fast)
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return checkpoints.oracle(model, IDS)


def logit(directory: Path, also: str | None = None) -> float:
    head = read_head(list_weight_files(directory), also)
    assert head is not None
    model = RewardModel.load(directory, torch.float32, torch.device("cpu"))
    model.add_signal("s", checked(Head(head.weight, head.bias), 32, head.name))
    with torch.inference_mode():
        return model.logits([TokenSequence(IDS, 2, Span(4, 5))], "s").item()


def inside(prefix: str, head: str) -> Callable[[Tensors], Tensors]:
    """The base under `prefix` in place of `model.`, the head under another name beside it."""
    return lambda tensors: {
        f"{head}.weight" if name == "score.weight" else prefix + name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
    }


SERVED = {
    "ddp": lambda t: {f"module.{n}": v for n, v in t.items()},
    "compiled ddp": lambda t: {f"_orig_mod.module.{n}": v for n, v in t.items()},
    "deepspeed-chat": inside("rwtranrsformer.", "v_head"),
    "deepspeed-chat, spelt right": inside("rwtransformer.", "v_head"),
    "trl value head": inside("pretrained_model.model.", "v_head.summary"),
    "starling": inside("transformer.", "v_head"),
    "ultrarm": inside("model.", "regression_head"),
    "openrlhf": inside("model.", "reward_head"),
    "safe-rlhf": inside("model.", "score_head"),
}


@pytest.mark.parametrize("trainer", SERVED)
def test_a_renamed_checkpoint_scores_as_before_it_was_renamed(trainer: str, tmp_path: Path) -> None:
    expected = rewritten(tmp_path, SERVED[trainer])
    assert logit(tmp_path) == pytest.approx(expected, abs=1e-5)


def test_the_head_that_openrlhf_names_in_the_config_is_read(tmp_path: Path) -> None:
    expected = rewritten(tmp_path, inside("model.", "my_value"), value_head_prefix="my_value")
    assert read_head(list_weight_files(tmp_path)) is None
    assert logit(tmp_path, "my_value") == pytest.approx(expected, abs=1e-5)


def test_the_tensors_of_a_head_may_lie_in_different_shards(tmp_path: Path) -> None:
    """A bias or a first layer in another file than the weight must neither be lost nor refused."""
    tensors = {"score.bias": torch.tensor([3.0]), "score.weight": torch.ones(1, 2)}
    tensors |= {
        "0.weight": torch.eye(2),
        "0.bias": torch.zeros(2),
        "2.weight": torch.ones(1, 2),
        "2.bias": torch.ones(1),
    }
    for name, tensor in tensors.items():
        save_file({name if "." in name[2:] else f"v_head.summary.{name}": tensor}, tmp_path / name)
    head = read_head([tmp_path / "score.bias", tmp_path / "score.weight"])
    assert head is not None
    assert head.bias is not None
    assert head.bias.tolist() == [3.0]
    layers = read_head([tmp_path / name for name in tensors if not name.startswith("score")])
    assert layers is not None
    assert layers.bias is not None
    assert layers.dense is not None
    assert (layers.bias.tolist(), layers.dense.weight.tolist()) == ([1.0], [[1, 0], [0, 1]])


def test_the_dense_layer_of_a_wrapped_classifier_is_found(tmp_path: Path) -> None:
    save_file(
        {"module.bert.pooler.dense.weight": torch.eye(2), "module.bert.pooler.dense.bias": torch.ones(2)},
        tmp_path / "f",
    )
    dense = read_dense([tmp_path / "f"], "pooler.dense")
    assert dense is not None
    assert dense.weight.tolist() == [[1, 0], [0, 1]]


def test_tensors_that_differ_by_a_prefix_only_are_refused() -> None:
    with pytest.raises(
        StartError, match=r"tensors module\.score\.weight and score\.weight differ only by a wrapper's prefix"
    ):
        names.check_unwrapping(["score.weight", "module.score.weight"], "here")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            {"score.0.weight": (8, 8), "score.0.bias": (8,), "score.4.weight": (1, 8)},
            r"other layers than two with a ReLU between \(score\.0, score\.4\)",
        ),
        (
            {"v_head.summary.0.weight": (8, 8), "v_head.summary.3.weight": (1, 8)},
            r"\(v_head\.summary\.0, v_head\.summary\.3\)",
        ),
        ({"regression_layer.weight": (19, 8)}, r"a head of several objectives without its gate"),
        ({"out_proj.weight": (1, 8)}, r"out_proj\.weight has one output: .* rename it to score\.weight"),
        (
            {"model.layers.0.x.weight": (1, 8), "lm_head.weight": (9, 8)},
            r"this is a language model\. .* declare `head: \{tokens: \[TOKEN\]\}`",
        ),
        (
            {"model.norm.weight": (8,)},
            r"no head was found; looked for score\.weight, classifier\.weight.*declare the `adapter`",
        ),
    ],
    ids=str,
)
def test_a_head_that_is_not_served_is_named(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    assert re.search(message, why_no_head(shapes, {}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"normalizer.mean": torch.ones(1)}, "normalizer.mean has no place .*safe-rlhf's normalizer"),
        (lambda t: {f"base_model.model.{n}": v for n, v in t.items()} | LORA, "PEFT model around its base: merge it"),
        (lambda t: {f"critic.{n}": v for n, v in t.items()}, r"prefix 'critic\.model\.' is not known"),
    ],
)
def test_tensors_that_do_not_fit_are_explained(
    change: Callable[[Tensors], Tensors], message: str, tmp_path: Path
) -> None:
    rewritten(tmp_path, change)
    with pytest.raises(StartError, match=message):
        RewardModel.load(tmp_path, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    ("head", "beside"),
    [
        ("score.weight", "score.norm.weight"),
        ("score.weight", "score.dense.weight"),
        ("classifier.weight", "classifier.dense.weight"),
        ("v_head.summary.weight", "v_head.dense.weight"),
        ("score.weight", "value_head.1.weight"),
        ("my_value.weight", "my_value.norm.bias"),
        ("base_model.model.score.weight", "base_model.model.score.norm.weight"),
        (
            "base_model.model.score.modules_to_save.default.weight",
            "base_model.model.score.modules_to_save.default.n.bias",
        ),
        ("module.score.weight", "module.score.lora_A.weight"),
    ],
)
def test_a_head_of_which_a_part_would_be_ignored_is_refused(head: str, beside: str, tmp_path: Path) -> None:
    tensors = {"model.norm.weight": torch.ones(8), head: torch.ones(1, 8)}
    path = tmp_path / "f"
    save_file(tensors, path)
    assert read_head([path], "my_value") is not None
    save_file(tensors | {beside: torch.ones(8, 8)}, path)
    with pytest.raises(
        StartError, match=rf"/f: {re.escape(beside)} (belongs to the head as well as|is LoRA on the head itself)"
    ):
        read_head([path], "my_value")


def test_a_head_has_its_bias_its_dense_layer_and_the_copy_that_peft_keeps_beside_it(tmp_path: Path) -> None:
    classifier = ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")
    for number, tensors in enumerate(
        (
            {f"base_model.model.classifier.{name}": torch.ones(1, 1) for name in classifier},
            {"score.weight": torch.ones(1, 8), "score.bias": torch.ones(1)},
            {
                "score.modules_to_save.default.weight": torch.ones(1, 8),
                "score.original_module.weight": torch.ones(1, 8),
            },
        )
    ):
        save_file(tensors, tmp_path / str(number))
        assert read_head([tmp_path / str(number)]) is not None


def test_a_head_of_another_shape_says_so() -> None:
    with pytest.raises(StartError, match=r"shape \[5, 8\], but a head on this base has \[1, 8\]"):
        checked(Head(torch.ones(5, 8), None), 8, "score.weight")


def test_the_command_for_pickles_converts_them(tmp_path: Path) -> None:
    """The command of the error is run as it stands, on a sharded checkpoint in a folder with a space in its name."""
    directory = tmp_path / "my model"
    expected = rewritten(directory, lambda tensors: tensors)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    first = dict(list(tensors.items())[:5])
    torch.save(first, directory / "pytorch_model-00001-of-00002.bin")
    torch.save({n: t for n, t in tensors.items() if n not in first}, directory / "pytorch_model-00002-of-00002.bin")
    torch.save({"x": 1}, directory / "training_args.bin")
    with pytest.raises(StartError, match="is a pickle and is not read") as refused:
        list_weight_files(directory)
    command = refused.value.message.partition("Convert it once: ")[2]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PATH": path})
    assert logit(directory.with_name("my model-converted")) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["adapter_model", "value_head"])
def test_pickled_adapters_and_value_heads_are_named_with_their_command(name: str, tmp_path: Path) -> None:
    assert explain_pickled(tmp_path, f"{name}.safetensors") == ""
    (tmp_path / f"{name}.bin").touch()
    explained = explain_pickled(tmp_path, f"{name}.safetensors")
    assert f"{name}.bin is a pickle and is not read" in explained
    assert f"Convert it once: assay convert {tmp_path} {tmp_path}-converted" in explained


def test_pickles_of_a_trainers_state_are_not_taken_for_weights(tmp_path: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (tmp_path / name).touch()
    assert explain_pickled(tmp_path, "model.safetensors") == ""


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{half")
    with pytest.raises(StartError, match=r"model\.safetensors: not a whole safetensors file"):
        names.read_shapes([tmp_path / "model.safetensors"])
