"""The table of reward models: every layout in it is served, and scores as the code that it was published with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from assay_service import create_app, preset
from assay_service.cli import app
from assay_service.scoring.item import Item
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from assay_service.settings import Settings, parse
from tests.coverage import texts
from tests.coverage.layouts import LAYOUTS, Layout
from tests.coverage.table import NEEDS, PAGE, ROOT, build_page, count_needs, list_presets, read_models
from tests.real_tokenizers import real_tokenizer

PAIRS = [
    ("How do I bake bread?", "Mix flour, water, salt and yeast, and wait."),
    ("How do I bake bread?", "No"),
    ("1 2 3", "The quick brown fox jumps over the lazy dog."),
]
SERVED = 61  # of 73 models of reward-bench's list
DECLARED = {"kind": "preference", "unfinished": "error"}


def configure(layout: Layout, root: Path) -> Settings:
    """Return the settings that serve a published layout: by declarations, or by what `assay convert` prints."""
    signals = {f"s{n}": {"base": "rm", "eos": "template", **keys} for n, keys in enumerate(layout.signals)}
    if layout.convert is not None:
        declared = [f"--{key}={value}" for key, value in {**DECLARED, "eos": "template"}.items()]
        done = CliRunner().invoke(app, ["convert", str(root / "rm"), str(root / "out"), *declared, *layout.convert])
        assert (root / "out").is_dir(), done.output
        assert not list((root / "out").glob("*.bin"))
        ((name, keys),) = yaml.safe_load(done.stdout)["signals"].items()
        signals = {name: {**keys, **layout.signals[0]}}
    common = {**DECLARED, "dtype": "float32"}
    longest = {} if layout.convert is not None else {"max_length": 250}
    raw = {
        "signals": {name: {**common, **longest, **keys} for name, keys in signals.items()},
        "default": next(iter(signals)),
    }
    parsed = parse(raw, root)
    assert parsed.settings is not None, parsed.problems
    return parsed.settings


@pytest.mark.parametrize("shape", LAYOUTS)
def test_a_layout_scores_as_the_code_that_it_was_published_with(shape: str, tmp_path: Path) -> None:
    layout = LAYOUTS[shape]
    original = layout.publish(tmp_path / "rm")
    settings = configure(layout, tmp_path)
    names = list(settings.signals)
    items = [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS]
    with TestClient(create_app(settings)) as client:
        body: dict[str, Any] = {"items": items, "weights": dict.fromkeys(names, 1.0)}
        answer = client.post("/v1/score", json=body).json()
        rendered = client.post("/v1/render", json={"items": items}).json()["data"]
        info = client.get("/info").json()["signals"]
    ids = [original.encode(*pair) for pair in PAIRS]
    with torch.inference_mode():
        expected = [original.forward(torch.tensor([row])) for row in ids]
    for row, own in zip(rendered, ids, strict=True):
        assert all(row["signals"][name]["ids"] == own for name in names)
    for n, name in enumerate(names):
        logits = [row["signals"][name]["logit"] for row in answer["data"]]
        assert logits == pytest.approx([rewards[n] for rewards in expected], abs=1e-5, rel=1e-5)
        assert max(logits) - min(logits) > 1e-2  # the items have different logits
        assert info[name]["invariant"] is True


def encode_qwen3_reranker(fast: PreTrainedTokenizerFast, query: str, text: str) -> list[int]:
    """The model card's code: prefix, instruction with the pair, suffix."""
    before, start, middle, after = texts.QWEN3
    return texts.encode_pieces(fast, before, start + query + middle + text, after)


def encode_bge_gemma(fast: PreTrainedTokenizerFast, query: str, text: str) -> list[int]:
    """FlagEmbedding's code."""
    return texts.encode_pieces(fast, "<bos>", f"A: {query}", "\n", f"B: {text}", "\n", texts.BGE_PROMPT)


def encode_mxbai(fast: PreTrainedTokenizerFast, query: str, text: str) -> list[int]:
    """The code of mxbai_rerank."""
    before, start, middle, after = texts.MXBAI
    task, end, suffix = after.removeprefix("\n").partition("<|im_end|>")
    parts = (before, start + query, "\n", middle.removeprefix("\n") + text, "\n", task, end + suffix)
    return texts.encode_pieces(fast, *parts)


@pytest.mark.parametrize(
    ("judge", "tokenizer", "encode", "same"),
    [
        ("qwen3-reranker", "qwen3", encode_qwen3_reranker, (True, True)),
        ("bge-gemma", "gemma", encode_bge_gemma, (True, True)),
        # "?" and a line break are one token of Qwen2.5, but its code encodes the line break by itself.
        ("mxbai", "qwen2_5", encode_mxbai, (True, False)),
    ],
)
def test_rerankers_have_the_ids_of_their_own_code_on_their_own_tokenizers(
    judge: str, tokenizer: str, encode: Callable[..., list[int]], same: tuple[bool, bool]
) -> None:
    fast = PreTrainedTokenizerFast.from_pretrained(real_tokenizer(tokenizer))
    rules = RenderRules(texts.JUDGE_TEMPLATES[judge], 2048, "last_token", "template", "error")
    renderer = Renderer(fast, rules, len(fast))
    pairs = [("how do planes fly", " 多少 by lift\nand thrust"), ("How do planes fly?", "By lift.")]
    for pair, equal in zip(pairs, same, strict=True):
        assert (list(renderer.render(Item.of(*pair)).sequence.ids) == encode(fast, *pair)) is equal


# Layouts whose tests have more to show than one logit.
ELSEWHERE = {
    "athene": "tests/service/test_convert.py::test_athene_reads_its_token_which_the_written_template_appends",
    "qwen-math-prm": "tests/service/test_step_shapes.py::test_qwen_math_prm",
    "math-shepherd": "tests/service/test_step_shapes.py::test_math_shepherd",
    "rlhflow-prm": "tests/service/test_step_shapes.py::test_rlhflow",
    "skywork-o1-prm": "tests/service/test_convert.py::test_a_pickled_process_reward_model_is_read_at_its_steps",
}


def test_every_model_of_the_table_has_a_layout_with_a_test_or_a_reason() -> None:
    listed, others = read_models()
    assert len({model.name for model in [*listed, *others]}) == len(listed) + len(others)
    for model in [*listed, *others]:
        assert model.needs in NEEDS, model
        assert (model.needs == "not served") == bool(model.reason), model
        assert model.source, model
        if model.needs != "not served":
            assert model.shape in LAYOUTS.keys() | ELSEWHERE.keys(), model
            layout = LAYOUTS.get(model.shape)
            converted = "test_convert.py" in ELSEWHERE[model.shape] if layout is None else layout.convert is not None
            assert (model.needs == "convert") == converted, model
        elif model.shape:
            assert model.shape in LAYOUTS.keys() | ELSEWHERE.keys(), model
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (ROOT / file).read_text()


# Rows of the table whose class has another name in `config.json` than in its code, or is loaded by another class.
RENAMED = {"GRewardModel": {"LlamaForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM"}}


def test_every_preset_says_of_its_checkpoint_what_the_table_says() -> None:
    models = {model.name: model for models in read_models() for model in models}
    for hub_id, name in list_presets().items():
        known, model = preset.read(name), models[hub_id]
        assert known.architecture in RENAMED.get(model.class_name, {model.class_name}), name
        assert model.model_type in {known.model_type, f"{known.model_type}_reward_model"}, name  # of Open-Assistant
        if model.needs != "not served":  # those are too large for one device, or the preset would not start
            assert (model.needs == "convert") == (known.convert is not None), name


def test_the_share_of_reward_benchs_list_is_what_the_page_says() -> None:
    listed, _ = read_models()
    counts = count_needs(listed)
    assert len(listed) == 73
    assert len(listed) - counts["not served"] == SERVED
    page = PAGE.read_text()
    assert build_page(page) == page, "run `python -m tests.coverage.table`"
