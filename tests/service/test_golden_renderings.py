"""Golden renderings of presets: against published tokenizers and templates, and at the start of a tiny checkpoint."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from assay_service import loader, preset
from assay_service.errors import StartError
from tests.coverage import texts
from tests.real_templates import trl_templates
from tests.renderings import BEIJING, BRASILIA, GRAVITY, RENDERERS, tokenizer
from tests.service.test_presets import Source, convert, make_settings

RENDERED = [name for name in preset.list_names() if preset.read(name).renderings]
# What a start may refuse by: scores and renderings that a public text states.
CHECKED = [
    name
    for name in preset.list_names()
    if preset.read(name).rows or (name in RENDERED and "rendered" not in preset.read(name).unverified)
]


def test_every_rendering_has_a_second_source() -> None:
    assert set(RENDERED) == set(RENDERERS)


def test_at_least_25_presets_are_checked_at_their_start() -> None:
    assert len(CHECKED) >= 25
    # Families that people ask for: at least one checkpoint of each, if only by a rendering that is inferred.
    wanted = ("skywork-reward-v2", "qwen3-reranker", "armorm", "qrm", "grm", "urm", "llama3.1-8b-prm", "skywork-o1")
    known = {*CHECKED, *RENDERED}
    assert [family for family in wanted if not any(name.startswith(family) for name in known)] == []
    assert sum(name.startswith("skywork-reward-v2") for name in known) == 8


@pytest.mark.parametrize("name", RENDERED)
def test_a_recorded_rendering_is_that_of_published_tokenizer_and_template(name: str) -> None:
    """A second implementation: transformers, or the code of the model card."""
    (recorded,) = preset.read(name).renderings
    render, messages = RENDERERS[name]
    expected = render(messages)
    assert recorded.messages == tuple(messages)
    assert recorded.text == expected.text
    assert (recorded.ids, recorded.read, recorded.gate) == (expected.ids, expected.read, expected.gate)


def test_published_counts_of_tokens_are_those_of_the_renderings() -> None:
    """Third sources: NeMo-RL's test has 39 tokens for one conversation, vLLM Ascend's guide 193 for two pairs."""
    (brasilia,) = preset.read("skywork-reward-v2-qwen3-0.6b").renderings
    assert (brasilia.messages, len(brasilia.ids)) == (tuple(BRASILIA), 39)
    (beijing,) = preset.read("qwen3-reranker-8b").renderings
    render, _ = RENDERERS["qwen3-reranker-8b"]
    assert beijing.messages == tuple(BEIJING)
    assert len(beijing.ids) + len(render(GRAVITY).ids) == 193


def save(root: Path, name: str, template: str | None, fast: PreTrainedTokenizerFast | None = None) -> dict[str, Any]:
    """Save a tiny random checkpoint of a preset's class in `rm`, and return the keys of a signal that serves it.

    Args:
        root: directory of the test.
        name: name of the preset.
        template: chat template of the checkpoint; None for the tokenizer's own.
        fast: tokenizer of the checkpoint; None for the published one.
    """
    source = Source(preset.read(name), root / "rm")
    kept = source.fast if fast is None else fast
    if template is not None:
        kept.chat_template = template
    kept.save_pretrained(root / "rm")
    return {"preset": name, "base": "rm", "max_length": 256}  # a start tests the longest length, which takes time


# One of each second implementation, with the published template where the preset has none of its own.
STARTS = {
    "skywork-reward-v2-qwen3-1.7b": "qwen3",
    "fsfairx-llama3-rm-v0.1": "llama3",
    "grm-gemma2-2b-rewardmodel-ft": "gemma",
    "grm-llama3.2-3b-rewardmodel-ft": "llama3_2",
    "llama3.1-8b-prm-deepseek-data": "llama3_1",
    "qwen3-reranker-0.6b": None,
    "mxbai-rerank-base-v2": None,
    "bge-reranker-v2-gemma": None,
}


@pytest.mark.parametrize("name", STARTS)
def test_a_start_with_published_tokenizer_and_template_gives_the_rendering(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = STARTS[name]
    keys = save(tmp_path, name, None if template is None else trl_templates()[template])
    with caplog.at_level(logging.INFO):
        loader.load(make_settings(tmp_path, rm=keys))
    assert f"signals.rm: renders 1 conversations as preset {name}" in caplog.text
    assert f"preset {name}: no golden score of it was ever run" in caplog.text
    assert "differs first at" not in caplog.text


def test_a_converted_process_reward_model_gives_its_rendering(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "skywork-o1-open-prm-qwen-2.5-1.5b"
    Source(preset.read(name), tmp_path / "source")
    convert(name, tmp_path)
    with caplog.at_level(logging.INFO):
        loader.load(make_settings(tmp_path, rm={"preset": name, "base": "rm", "max_length": 256}))
    assert f"renders 1 conversations as preset {name}" in caplog.text


def test_another_template_is_refused_before_the_weights_are_read(tmp_path: Path) -> None:
    name = "fsfairx-llama3-rm-v0.1"
    keys = save(tmp_path, name, trl_templates()["llama3_1"])
    save_file({"score.weight": torch.zeros(1, 32)}, tmp_path / "rm/model.safetensors", {"format": "pt"})  # without base
    with pytest.raises(StartError) as refused:
        loader.load(make_settings(tmp_path, rm=keys))
    assert refused.value.message == (
        f"signals.rm: preset {name}: golden rendering 0 differs first at position 2: 882 ('user') is recorded, but the "
        "loaded tokenizer gives 9125 ('system'); the template prints another text: take tokenizer and chat template "
        "from sfairXC/FsfairX-LLaMA3-RM-v0.1, or declare the template of training (`template: FILE`); "
        "remove `preset` for another checkpoint"
    )


def test_a_declared_template_is_served_without_the_check(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "fsfairx-llama3-rm-v0.1"
    keys = save(tmp_path, name, trl_templates()["llama3_1"])
    (tmp_path / "own.jinja").write_text(trl_templates()["llama3_1"])
    loader.load(make_settings(tmp_path, rm=keys | {"template": "own.jinja"}))
    assert f"preset {name}: its golden renderings are not checked, because template is changed" in caplog.text


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    name = "fsfairx-llama3-rm-v0.1"
    other = texts.build("llama3")  # the same special tokens and the same text
    keys = save(tmp_path, name, None, other)
    config = tmp_path / "rm/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token_id": other.pad_token_id}))
    with pytest.raises(StartError) as refused:
        loader.load(make_settings(tmp_path, rm=keys))
    first = other.convert_tokens_to_ids("<|begin_of_text|>")
    assert (
        "golden rendering 0 differs first at position 0: 128000 (None) is recorded, but the loaded tokenizer gives"
        in (refused.value.message)
    )
    assert (
        f"gives {first} ('<|begin_of_text|>'); the tokenizer encodes the same text otherwise: take tokenizer.json from "
        "sfairXC/FsfairX-LLaMA3-RM-v0.1"
    ) in refused.value.message


def test_a_rendering_that_no_public_text_states_only_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "grm-llama3.2-3b-rewardmodel-ft"
    keys = save(tmp_path, name, trl_templates()["llama3"])
    loader.load(make_settings(tmp_path, rm=keys))
    assert f"signals.rm: preset {name}: golden rendering 0 differs first at position 3: 9125 ('system')" in caplog.text
    assert "No public text states this rendering: compare it with the model card" in caplog.text


def test_a_rendering_that_is_shorter_ends_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "skywork-reward-v2-qwen3-0.6b"
    (recorded,) = preset.read(name).renderings
    keys = save(tmp_path, name, trl_templates()["qwen3"])
    short = recorded.model_copy(update={"ids": recorded.ids[:-1]})
    monkeypatch.setattr(loader, "find_renderings", lambda use: (short,))
    with pytest.raises(StartError, match=r"differs first at position 38: the end is recorded, but .* gives 198"):
        loader.load(make_settings(tmp_path, rm=keys))
    moved = recorded.model_copy(update={"read": (37,)})
    monkeypatch.setattr(loader, "find_renderings", lambda use: (moved,))
    with pytest.raises(
        StartError, match="golden rendering 0 is read at 37, but the loaded signal reads it at 38; declare the `score_"
    ):
        loader.load(make_settings(tmp_path, rm=keys))


def test_a_conversation_that_does_not_fit_names_its_limit(tmp_path: Path) -> None:
    keys = save(tmp_path, "qwen3-reranker-0.6b", None) | {"max_length": 80}
    with pytest.raises(StartError, match="golden rendering 0 cannot be rendered: the item has 85 tokens, at most 80"):
        loader.load(make_settings(tmp_path, rm=keys))


def test_the_gate_is_part_of_a_rendering() -> None:
    """ArmoRM's code has the ids of its gate's text; the recorded position is where they begin in the prompt."""
    (recorded,) = preset.read("armorm-llama3-8b-v0.1").renderings
    assert recorded.gate is not None
    assert recorded.ids[recorded.gate : recorded.gate + 5] == (128009, 128006, 78191, 128007, 271)
    assert tokenizer("llama3").convert_ids_to_tokens(recorded.ids[recorded.gate]) == "<|eot_id|>"
