"""Configurations: ours load, and a wrong one is told by file and key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from assay_service.scoring.item import Item
from assay_service.scoring.render import Renderer, RenderRules
from assay_training.config import ConfigError, read
from tests import checkpoints
from tests.training import tiny

CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.yaml"))


def test_there_are_configurations() -> None:
    assert {path.stem for path in CONFIGS} >= {"preference", "absolute"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_of_ours_loads(path: Path) -> None:
    config = read(path)
    assert config.name == config.kind == path.stem
    assert config.template.is_absolute()
    assert {name.split("/")[0] for name in config.repeat} <= set(config.sources)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_template_of_every_configuration_prints_turns_between_cls_and_sep(path: Path) -> None:
    fast = checkpoints.encoder_tokenizer()
    config = read(path)
    rules = RenderRules(config.template.read_text(), config.max_length, "mean", config.eos, config.unfinished)
    rendered = Renderer(fast, rules, len(fast)).render(Item.of("hi", "yes"))
    assert rendered.text == "[CLS]user: hi[SEP]assistant: yes[SEP]"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"kind": "prefrence"}, "kind"),
        ({"sources": ["hh"]}, "sources.0"),
        ({"sources": []}, "sources"),
        ({"epochs": 2}, "epochs"),
        ({"optimiser": {"learning_rate": 0}}, "optimiser.learning_rate"),
        ({"optimiser": {"learning_rate": 0.1, "lr": 1}}, "optimiser.lr"),
        ({"split": {"folds": 2, "test_folds": 3}}, "split"),
        ({"repeat": {"feedbackqa": 0}}, "repeat.feedbackqa"),
        ({"golden": []}, "golden"),
        ({"name": "a name"}, "name"),
        ({"template": "absent.jinja"}, "template"),
    ],
)
def test_an_error_names_file_and_key(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    path = tiny.write_config(tmp_path / "run.yaml", tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: {key}: ")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tiny.write_config(tmp_path / "run.yaml", tmp_path)
    rest = yaml.safe_load(path.read_text())
    del rest["score_position"]
    path.write_text(yaml.safe_dump(rest))
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: score_position: Field required"


@pytest.mark.parametrize("text", ["kind: [", "", "- a list"])
def test_what_is_no_mapping_is_told_with_the_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        read(tmp_path / "absent.yaml")


def test_the_template_is_looked_for_beside_the_configuration(tmp_path: Path) -> None:
    config = read(tiny.write_config(tmp_path / "deep" / "run.yaml", tmp_path))
    assert config.template == (tmp_path / "deep" / "template.jinja").resolve()


def test_a_score_position_that_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="score_position"):
        read(tiny.write_config(tmp_path / "run.yaml", tmp_path, score_position="pooler"))
