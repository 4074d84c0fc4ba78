"""The last lines of a run: its results, and how to use its checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from assay_service import loader, settings
from assay_training import sft
from assay_training.cli.main import app
from assay_training.config.base import read
from assay_training.config.reward import RewardConfig
from assay_training.reward_model import summary
from assay_training.rl import summary as rl_summary
from tests.training import tiny

ESTIMATE = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 1200, "clusters": 90}
LENGTH = {"value": 0.55, "low": 0.5, "high": 0.6, "n": 1200, "clusters": 90}


def config_of(tmp_path: Path, **changes: Any) -> RewardConfig:
    return read(tiny.write_config(tmp_path / "run.yaml", tmp_path / "base", **changes), RewardConfig)


def test_a_preference_model_is_summarized_beside_its_length_baseline(tmp_path: Path) -> None:
    results = {
        "hh_rlhf": {"accuracy": {"model": ESTIMATE, "length": LENGTH}},
        "all": {"accuracy": {"model": ESTIMATE, "length": ESTIMATE | {"value": 0.65}}},
        "few": {"accuracy": {}},
    }
    assert summary.format_summary(config_of(tmp_path, split={"held_out": 0.1}), results, Path("runs/tiny")) == [
        "tiny, on held-out groups:",
        "  hh_rlhf: 0.700 [0.600, 0.800] of 1,200 pairs right; the longer completion is better in 0.550 [0.500, 0.600]",
        "  all: 0.700 [0.600, 0.800] of 1,200 pairs right; the longer completion is better in 0.650 [0.600, 0.800]; "
        "not shown to be better than length",
        "  few: too few groups for an accuracy",
        "checkpoint: runs/tiny/checkpoint",
        "to serve it: assay serve --config runs/tiny/service.yaml",
        "  signals:",
        "    tiny:",
        f"      base: {tmp_path}/base",
        "      adapter: checkpoint",
        "  default: tiny",
    ]


def test_an_absolute_model_is_summarized_by_source(tmp_path: Path) -> None:
    numbers = {
        "statistic": "AUC",
        "errors": {"model": {"all": [602, 0.25, 0.5]}},
        "rank": {"model": ESTIMATE, "length": None},
    }
    config = config_of(tmp_path, objective={"kind": "absolute"})
    assert summary.format_summary(config, {"diasafety": numbers}, Path("r"))[:2] == [
        "tiny, on out-of-fold groups; the checkpoint is trained on all:",
        "  diasafety: AUC of 602 items: model 0.700 [0.600, 0.800], by length -; MSE 0.2500, MAE 0.5000",
    ]
    raw = config_of(tmp_path, objective={"kind": "absolute", "loss": "mse+penalty"}, split={"held_out": 0.1})
    assert (
        summary.format_summary(raw, {}, Path("r"))[-1] == "no checkpoint: the output of this objective is not a logit"
    )


def test_a_whole_model_of_the_hub_is_served_by_its_checkpoint(tmp_path: Path) -> None:
    whole = config_of(tmp_path, lora=None)
    assert yaml.safe_load(summary.build_service_yaml(whole)) == {
        "signals": {"tiny": {"base": "checkpoint"}},
        "default": "tiny",
    }
    hub = read(tiny.write_config(tmp_path / "hub.yaml", Path("org/model"), revision="main"), RewardConfig)
    signal = {"base": "org/model", "revision": "main", "adapter": "checkpoint"}
    assert yaml.safe_load(summary.build_service_yaml(hub))["signals"] == {"tiny": signal}


def test_policies_are_summarized_by_stages_steps_and_rounds() -> None:
    losses = {
        "sft": {"before": {"targets": 9000, "perplexity": 132.04}, "after": {"targets": 9000, "perplexity": 37.1}}
    }
    policy = [
        "policy: runs/p/checkpoint",
        "to use it: as any model of transformers or vLLM, or as `base` of another run",
    ]
    assert sft.describe_sft_run(losses, Path("runs/p/checkpoint")) == [
        "sft: perplexity on 9,000 held-out tokens 132 before, 37.1 after",
        *policy,
    ]
    rows = [{"score": float(score), "kl": score / 10} for score in range(20)]
    assert rl_summary.describe_ppo_run(rows, Path("runs/p/checkpoint")) == [
        "score: 2.000 in the first 5 of 20 steps, 17.000 in the last 5; KL to the reference 1.90 nats per completion",
        *policy,
    ]
    assert rl_summary.describe_ppo_run(rows[:1], Path("x"))[0].startswith(
        "score: 0.000 in the first 1 of 1 steps, 0.000 in the last 1;"
    )
    assert rl_summary.describe_rejection_run(
        [{"round": 1, "score": 0.5, "best_score": 1.25}], 8, Path("runs/p/checkpoint")
    ) == [
        "round 1: mean score 0.500, mean of the best of 8 1.250",
        *policy,
    ]


@pytest.mark.parametrize("whole", [False, True])
def test_the_lines_of_a_run_serve_its_checkpoint(whole: bool, tmp_path: Path) -> None:
    rows = [tiny.hh_row(f"q {i}", "a fox jumps over", "no") for i in range(60)]
    tiny.write_rows(tmp_path / "data" / "hh_rlhf" / "x.jsonl.gz", rows)
    changes: dict[str, Any] = {"split": {"held_out": 0.2}} | ({"lora": None} if whole else {})
    path = tiny.write_config(tmp_path / "run.yaml", tiny.save_base(tmp_path / "base"), **changes)
    options = ["--config", str(path), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["train", "reward", *options])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "out" / "checkpoint")
    printed = result.stderr.strip().splitlines()
    start = next(i for i, line in enumerate(printed) if line.startswith("tiny, on held-out groups:"))
    accuracy = json.loads((tmp_path / "out" / "results.json").read_text())["all"]["accuracy"]["model"]
    assert any(line.startswith(f"  all: {accuracy['value']:.3f} [") for line in printed[start:])
    assert f"to serve it: assay serve --config {tmp_path}/out/service.yaml" in printed
    lines = printed[printed.index(f"to serve it: assay serve --config {tmp_path}/out/service.yaml") + 1 :]
    assert yaml.safe_load("\n".join(lines)) == yaml.safe_load((tmp_path / "out" / "service.yaml").read_text())
    registry = loader.load(settings.read_settings(tmp_path / "out" / "service.yaml"))
    assert registry.signals["tiny"].kind == "preference"
