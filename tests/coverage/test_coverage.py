"""The table of reward models: every layout in it is served, and scores as the code that it was published with."""

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
from tests.coverage.table import NEEDS, PAGE, ROOT, build_page, is_served_simply, list_presets, read_models
from tests.real_tokenizers import real_tokenizer

PAIRS = [
    ("How do I bake bread?", "Mix flour, water, salt and yeast, and wait."),
    ("How do I bake bread?", "No"),
    ("1 2 3", "The quick brown fox jumps over the lazy dog."),
]
SERVED = 63  # of 73 models of reward-bench's list: by a preset, or by `assay convert`
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


# The last pair ends with punctuation and line breaks, which merge with the line break of a prompt.
QUERIES = [
    ("how do planes fly", " 多少 by lift\nand thrust"),
    ("How do planes fly?", "By lift."),
    ("How do planes fly?\n\n", "By lift.\n\n\n"),
]


def judge(name: str, tokenizer: str, template: str) -> tuple[list[list[int]], list[list[int]]]:
    """Return the ids of all queries: those that are scored by a template, and those of the reranker's own code."""
    fast = PreTrainedTokenizerFast.from_pretrained(real_tokenizer(tokenizer))
    renderer = Renderer(fast, RenderRules(template, 2048, "last_token", "template", "error"), len(fast))
    scored = [list(renderer.render(Item.of(*pair)).sequence.ids) for pair in QUERIES]
    return scored, [texts.ENCODE_JUDGES[name](fast, *pair) for pair in QUERIES]


@pytest.mark.parametrize(
    ("name", "tokenizer"), [("qwen3-reranker", "qwen3"), ("bge-gemma", "gemma"), ("mxbai", "qwen2_5")]
)
def test_rerankers_have_the_ids_of_their_own_code_on_their_own_tokenizers(name: str, tokenizer: str) -> None:
    scored, expected = judge(name, tokenizer, texts.JUDGE_TEMPLATES[name])
    assert scored == expected


def test_without_borders_mxbai_reads_other_ids_where_punctuation_ends_a_piece() -> None:
    """ "?" and a line break are one token of Qwen2.5, but its code encodes the line break by itself."""
    scored, expected = judge("mxbai", "qwen2_5", texts.JUDGE_TEMPLATES["mxbai"].replace("{{ piece_border }}", ""))
    assert [one == other for one, other in zip(scored, expected, strict=True)] == [True, False, False]


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
        assert model.needs != "not served", name
        assert (model.needs == "convert") == (known.convert is not None), name
        assert (known.signal.get("engine") == "vllm") <= (model.needs in {"vllm", "convert"}), name


def test_the_share_of_reward_benchs_list_is_what_the_page_says() -> None:
    listed, _ = read_models()
    assert len(listed) == 73
    assert sum(is_served_simply(model, list_presets()) for model in listed) == SERVED
    page = PAGE.read_text()
    assert build_page(page) == page, "run `python -m tests.coverage.table`"
