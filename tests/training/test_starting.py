"""What a new user starts from: the page of keys, and the configurations that `--example` prints."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from assay_training.cli.main import app
from assay_training.config.base import RunConfig, read
from assay_training.config.data import Format, Source
from assay_training.config.joint import JointConfig
from assay_training.config.ppo import PpoConfig
from assay_training.config.rejection import RejectionConfig
from assay_training.config.reward import RewardConfig
from assay_training.config.rollout import Reward
from assay_training.config.sft import SftConfig
from assay_training.records.sources import read_labelled, read_prompts, read_rankings, read_spoken
from assay_training.reward_model.command import run
from tests import checkpoints
from tests.training import reference, tiny

KINDS: dict[str, type[RunConfig]] = {
    "reward": RewardConfig,
    "sft": SftConfig,
    "ppo": PpoConfig,
    "rejection": RejectionConfig,
}


def printed(command: str) -> str:
    result = CliRunner().invoke(app, ["train", command, "--example"])
    assert result.exit_code == 0
    return result.output


def test_the_page_of_keys_is_that_of_the_models() -> None:
    """`python -m tests.training.reference` writes it anew."""
    assert reference.PAGE.read_text() == reference.page()


def test_the_page_has_a_section_for_every_part_of_a_configuration() -> None:
    documented = {one for models in reference.SECTIONS.values() for one in models}

    def parts(annotation: Any) -> set[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            inner = [parts(field.annotation) for field in annotation.model_fields.values()]
            return {annotation}.union(*inner)
        return set().union(*(parts(argument) for argument in get_args(annotation)))

    assert set().union(*(parts(kind) for kind in [*KINDS.values(), JointConfig])) == documented


@pytest.mark.parametrize("command", KINDS)
def test_an_example_is_a_configuration(command: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(printed(command))
    config = read(tmp_path / "run.yaml", KINDS[command])
    assert config.template is None
    assert config.base_reference in {str(tmp_path / "my-model"), str(tmp_path / "my-policy")}


@pytest.mark.parametrize("command", KINDS)
def test_a_wrong_configuration_is_reported_before_torch_is_imported(command: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(printed(command).replace("seed: 0", "sead: 0"))
    without = "import sys; sys.modules['torch'] = None; from assay_training.cli.main import app; app()"
    options = ["train", command, "--config", str(tmp_path / "run.yaml"), "--data", str(tmp_path)]
    ended = subprocess.run([sys.executable, "-c", without, *options], check=False, capture_output=True, text=True)
    assert ended.returncode == 2
    assert f"assay train {command}: {tmp_path}/run.yaml: sead: unknown key; the keys here are" in ended.stderr


def test_a_reward_model_is_trained_from_the_example(tmp_path: Path) -> None:
    """With nothing changed but the size of the test."""
    fast = checkpoints.tokenizer_of("llama")
    checkpoints.save(tmp_path / "my-model", checkpoints.language_model("llama", fast), fast)
    rows = [{"prompt": f"q {i}", "chosen": "a fox", "rejected": "no"} for i in range(40)]
    tiny.write_rows(tmp_path / "data" / "my-pairs" / "a.jsonl.gz", rows)
    config = yaml.safe_load(printed("reward")) | {"max_length": 64, "split": {"held_out": 0.2}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    run(tmp_path / "run.yaml", tmp_path / "data", tmp_path / "out")
    assert (tmp_path / "out" / "checkpoint" / "assay.json").is_file()


def test_the_example_rows_of_the_documentation_are_read(tmp_path: Path) -> None:
    page = (reference.PAGE.parent / "train.md").read_text()
    shapes, others = (block.splitlines() for block in re.findall(r"```json\n(.*?)\n```", page, re.DOTALL))
    for row in shapes:
        tiny.write_rows(tmp_path / "set" / "a.jsonl.gz", [row])
        (record,) = read_rankings(tmp_path, [Source(name="set", format="preferences")]).records
        assert record.items[0].completion == "Take the wheel off."
    readers: dict[Format, Any] = {
        "rankings": read_rankings,
        "labels": read_labelled,
        "dialogues": read_spoken,
        "text": read_spoken,
        "prompts": read_prompts,
    }
    for row, (format_, reader) in zip(others, readers.items(), strict=True):
        tiny.write_rows(tmp_path / "set" / "a.jsonl.gz", [row])
        assert len(reader(tmp_path, [Source(name="set", format=format_)]).records) == 1


def test_the_example_sources_and_expectations_of_the_documentation_are_valid() -> None:
    train, ppo = ((reference.PAGE.parent / name).read_text() for name in ("train.md", "ppo.md"))
    blocks = [
        yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", train.replace("COMMIT", "a1" * 20), re.DOTALL)
    ]
    sources = [Source.model_validate(source) for block in blocks for source in block.get("sources", [])]
    assert {source.format for source in sources} >= {"preferences", "hh", "gsm8k"}
    (given,) = re.findall(r"```yaml\n(reward:.*?)```", ppo, re.DOTALL)
    assert Reward.model_validate(yaml.safe_load(given)["reward"]).expect.signals["preference"].kind == "preference"
