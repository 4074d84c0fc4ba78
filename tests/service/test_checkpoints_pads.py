"""The pad that a head was trained with, what an adapter's own files say, and lengths beyond the trained positions."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from assay_service import loader, resolve, settings
from assay_service.errors import StartError
from assay_service.scoring.architectures import find_longest_scaled
from assay_service.scoring.item import PROBE, Item
from tests import checkpoints

EOS, PAD = 1, 2  # of `decoder_tokenizer`; the template below ends with EOS


def resolved(directory: Path, **signal: Any) -> resolve.ResolvedSignal:
    return resolve.resolve(configuration(directory, **signal))["s"]


def configuration(directory: Path, **signal: Any) -> settings.Settings:
    declared = {"kind": "preference", "eos": "template", "unfinished": "score", **signal}
    return settings.Settings.model_validate({"signals": {"s": declared}, "default": "s", "directory": directory})


def served_logit(directory: Path, item: Item = PROBE, **signal: Any) -> tuple[float, tuple[int, ...]]:
    served = loader.load(configuration(directory, **signal)).signals["s"]
    sequence = served.renderer.render(item).sequence
    with torch.inference_mode():
        return served.model.logits([sequence], "s").item(), sequence.ids


def edit(path: Path, **changes: Any) -> None:
    kept = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))


@pytest.fixture
def trl(tmp_path: Path) -> tuple[Path, Any]:
    """A LoRA as TRL's RewardTrainer saves it: the tokenizer beside it pads with EOS, as the model did in training."""
    fast = checkpoints.decoder_tokenizer(checkpoints.LLAMA3)
    assert (fast.eos_token_id, fast.pad_token_id) == (EOS, PAD)
    base = checkpoints.classifier("llama", fast)
    checkpoints.save(tmp_path / "base", base, fast)
    edit(tmp_path / "base" / "config.json", architectures=["LlamaForCausalLM"])
    _, trained = checkpoints.save_adapter(tmp_path / "adapter", copy.deepcopy(base))
    trained.config.pad_token_id = EOS
    fast.pad_token = fast.eos_token
    fast.save_pretrained(tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path="../base")
    return tmp_path, trained


def test_an_adapter_whose_pad_is_not_the_bases_is_refused_until_it_is_declared(trl: tuple[Path, Any]) -> None:
    directory, trained = trl
    with pytest.raises(StartError, match=r"config\.json says 2 \('<\|pad\|>'\) and .* tokenizer 1 \('<\|im_end\|>'\)"):
        resolved(directory, adapter="adapter")
    logit, ids = served_logit(directory, adapter="adapter", pad_token_id=EOS)
    assert ids[-1] == EOS
    assert logit == pytest.approx(checkpoints.oracle(trained, ids), abs=1e-5)
    trained.config.pad_token_id = PAD
    assert logit != pytest.approx(checkpoints.oracle(trained, ids), abs=1e-2)  # the base's pad is another score


def test_a_stack_has_the_pad_of_the_tokenizer_that_its_reward_was_trained_with(trl: tuple[Path, Any]) -> None:
    """The reward is trained on the merged SFT model with that one's tokenizer, of which its own folder has no copy."""
    directory, _ = trl
    sft = directory / "sft"
    sft.mkdir()
    for path in (directory / "adapter").glob("*token*"):
        path.rename(sft / path.name)
    shutil.copy(directory / "adapter" / "chat_template.jinja", sft)
    sft_lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    merged = AutoModelForSequenceClassification.from_pretrained(directory / "base", num_labels=1)
    wrapped = get_peft_model(merged, sft_lora)
    wrapped.save_pretrained(sft)
    oracle = PeftModel.from_pretrained(wrapped.merge_and_unload(), directory / "adapter").eval()
    oracle.config.pad_token_id = EOS
    stack: dict[str, Any] = {"base": "base", "adapter": ["sft", "adapter"]}
    for kept in ((), ("tokenizer_config.json",)):  # with a copy of its names, whose ids only the SFT adapter has
        for name in kept:
            shutil.copy(sft / name, directory / "adapter")
        with pytest.raises(
            StartError, match=r"config\.json says 2 \('<\|pad\|>'\) and .* tokenizer 1 \('<\|im_end\|>'\)"
        ):
            resolved(directory, **stack)
    logit, ids = served_logit(directory, **stack, pad_token_id=EOS)
    assert logit == pytest.approx(checkpoints.oracle(oracle, ids), abs=1e-5)


def test_the_pad_is_the_one_that_transformers_finds_where_two_files_name_one(trl: tuple[Path, Any]) -> None:
    directory, _ = trl
    adapter = directory / "adapter"
    edit(adapter / "tokenizer_config.json", pad_token="<|pad|>", added_tokens_decoder=None)
    (adapter / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<|im_end|>"}}))
    assert PreTrainedTokenizerFast.from_pretrained(adapter).pad_token_id == EOS
    with pytest.raises(StartError, match=r"the adapter's tokenizer 1 \('<\|im_end\|>'\)"):
        resolved(directory, adapter="adapter")
    tokens = {str(EOS): {"content": "<|im_end|>"}, str(PAD): {"content": "<|pad|>"}}
    edit(adapter / "tokenizer_config.json", added_tokens_decoder=tokens)
    assert PreTrainedTokenizerFast.from_pretrained(adapter).pad_token_id == PAD
    assert resolved(directory, adapter="adapter").rules.pad_token_id == PAD


def test_base_position_and_pad_come_from_the_adapters_own_files(trl: tuple[Path, Any]) -> None:
    directory, trained = trl
    edit(directory / "base" / "config.json", pad_token_id=None)
    rules = resolved(directory, adapter="adapter").rules
    assert (rules.score_position, rules.pad_token_id) == ("last_non_pad_id", EOS)
    logit, ids = served_logit(directory, adapter="adapter")
    assert logit == pytest.approx(checkpoints.oracle(trained, ids), abs=1e-5)


def test_without_any_pad_the_last_token_is_read_as_transformers_does(trl: tuple[Path, Any]) -> None:
    directory, _ = trl
    edit(directory / "base" / "config.json", pad_token_id=None)
    for tokenizer in (directory / "base", directory / "adapter"):
        edit(tokenizer / "tokenizer_config.json", pad_token=None)
        (tokenizer / "special_tokens_map.json").unlink(missing_ok=True)
    assert resolved(directory, adapter="adapter").rules.score_position == "last_token"
    assert resolved(directory, adapter="adapter", pad_token_id=EOS).rules.score_position == "last_non_pad_id"


def test_the_pad_of_a_whole_model_is_its_configs(tmp_path: Path) -> None:
    """As TRL saves it after full training: `config.json` has the pad that the trainer set."""
    fast = checkpoints.decoder_tokenizer(checkpoints.LLAMA3)
    reference = checkpoints.classifier("llama", fast, pad_token_id=EOS)
    checkpoints.save(tmp_path, reference, fast)
    logit, ids = served_logit(tmp_path, base=".")
    assert logit == pytest.approx(checkpoints.oracle(reference, ids), abs=1e-5)
    with pytest.raises(StartError, match="pad_token_id: remove it; score_position last_token does not skip pads"):
        resolved(tmp_path, base=".", score_position="last_token", pad_token_id=EOS)
    edit(tmp_path / "config.json", pad_token_id=None)
    assert resolved(tmp_path, base=".").rules.score_position == "last_token"  # as transformers reads without a pad
    assert resolved(tmp_path, base=".", score_position="last_non_pad_id").rules.pad_token_id == PAD


def test_a_checkpoint_of_our_own_keeps_the_pad_that_it_was_trained_with(trl: tuple[Path, Any]) -> None:
    directory, _ = trl
    claims = {"score_position": "last_non_pad_id", "eos": "template", "kind": "preference", "max_length": 99}
    (directory / "adapter" / "assay.json").write_text(json.dumps(claims))
    assert resolved(directory, adapter="adapter").rules.pad_token_id == PAD
    with pytest.raises(StartError, match="pad_token_id: declared 1, but the checkpoint's manifest says 2"):
        resolved(directory, adapter="adapter", pad_token_id=EOS)


def test_what_is_declared_in_the_wrong_place_is_named(trl: tuple[Path, Any]) -> None:
    directory, _ = trl
    with pytest.raises(StartError, match="this is a LoRA adapter: declare it as `adapter`, not as `base`"):
        resolved(directory, base="adapter")
    with pytest.raises(StartError, match="this is a whole model: declare it as `base`, not as `adapter`"):
        resolved(directory, adapter="base")
    edit(directory / "adapter" / "adapter_config.json", base_model_name_or_path="nobody/nothing")
    with pytest.raises(StartError, match=r"base: declare it; .* nobody/nothing: no such directory.*`revision`"):
        resolved(directory, adapter="adapter")
    edit(directory / "adapter" / "adapter_config.json", base_model_name_or_path="package:antigravity")
    with pytest.raises(StartError, match="base: declare `base: package:antigravity`"):
        resolved(directory, adapter="adapter")  # and no module is imported on an adapter's word
    run = directory / "run"
    (run / "checkpoint").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    with pytest.raises(StartError, match=r"training run: declare its checkpoint, .*/run/checkpoint"):
        resolved(directory, base="run")
    with pytest.raises(ValueError, match="base: declare the directory or hub id of the model, or an `adapter`"):
        configuration(directory)


YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
SPELLINGS: dict[str, dict[str, Any]] = {
    "rope_parameters": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, **YARN}},
    "rope_scaling": {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": {"type": "yarn", **YARN}},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_yarn_reaches_beyond_the_trained_positions(spelling: str, tmp_path: Path) -> None:
    fast = checkpoints.decoder_tokenizer()
    model = checkpoints.classifier("llama", fast, max_position_embeddings=64)
    checkpoints.save(tmp_path, model, fast)
    edit(tmp_path / "config.json", **SPELLINGS[spelling])
    assert resolved(tmp_path, base=".").rules.max_length == 64
    with pytest.raises(StartError, match="max_length: 257 is more than the checkpoint's 256"):
        resolved(tmp_path, base=".", max_length=257)
    item = Item.of("How do I bake bread? " * 12, "Mix flour and water, and wait. " * 12)
    logit, ids = served_logit(tmp_path, item, base=".", max_length=256)
    assert 128 < len(ids) <= 256
    reference = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert reference.config.rope_parameters["rope_type"] == "yarn"
    assert logit == pytest.approx(checkpoints.oracle(reference, ids), abs=1e-5)
    assert logit != pytest.approx(checkpoints.oracle(model.eval(), ids), abs=1e-3)  # not scaled, it is another score


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({}, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, None),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, 131072),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}}, 65536),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2, "original_max_position_embeddings": 100}}, 200),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2}}, None),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0, "original_max_position_embeddings": 32768}}, None),
    ],
    ids=str,
)
def test_the_reach_of_a_scaling_is_factor_times_the_original_positions(
    scaling: dict[str, Any], expected: int | None
) -> None:
    assert find_longest_scaled(scaling) == expected


def test_a_scaling_that_is_not_a_length_is_refused() -> None:
    with pytest.raises(StartError, match=r"rope scaling: factor '4' of 64 positions is not a length"):
        find_longest_scaled({"rope_scaling": {"type": "yarn", "factor": "4", "original_max_position_embeddings": 64}})
