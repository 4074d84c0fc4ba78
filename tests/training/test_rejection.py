"""`assay train rejection`: rounds of sampling, picking and learning, over HTTP."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from assay_client.client import RewardClient
from assay_training.cli import app
from assay_training.config.base import read
from assay_training.config.rejection import RejectionConfig
from assay_training.loops.rejection import RejectionRun
from tests.training.test_ppo import common, home, url

__all__ = ["home", "url"]  # fixtures


def config_of(home: Path, path: Path, **changes: Any) -> RejectionConfig:
    config = common(home, path.parent) | {
        "rounds": 2,
        "prompts": 12,
        "samples": 16,
        "optimiser": {
            "learning_rate": 0.02, "batch_prompts": 6, "epochs": 25, "compute_dtype": "float32", "checkpoint_steps": 4
        },
    }  # fmt: skip
    config["rollout"] |= {"chunk_completions": 64, "max_new_tokens": 2}
    path.write_text(yaml.safe_dump(config | changes))
    return read(path, RejectionConfig)


def rejection(home: Path, url: str, out: Path, **changes: Any) -> list[dict[str, Any]]:
    with RewardClient(url) as client:
        config = config_of(home, out.parent / "c.yaml", **changes)
        RejectionRun(config, home / "data", out, client).go()
    results: list[dict[str, Any]] = json.loads((out / "results.json").read_text())
    return results


def test_a_round_learns_from_the_best_and_the_next_samples_are_better(home: Path, url: str, tmp_path: Path) -> None:
    results = rejection(home, url, tmp_path / "run")
    assert results[0]["best_score"] > results[0]["score"]
    assert results[1]["score"] > results[0]["score"] + 0.2
    first = json.loads((tmp_path / "run" / "round-1.json").read_text())
    assert len(first["best"]) == 12
    with RewardClient(url) as client:
        served = client.score(
            [
                {"prompt": b["prompt"], "completion": b["completion"], "finish_reason": b["finish_reason"]}
                for b in first["best"]
            ],
            model="mix",
        )
    assert served.scores() == [best["score"] for best in first["best"]]
    assert served.fingerprint == first["fingerprint"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [sum(row["part"] == part for row in rows) for part in ("round-1", "round-2")] == [50, 100]  # of 12 and of 24
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").is_file()


def test_a_killed_rejection_run_goes_on_bit_for_bit(
    home: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rejection(home, url, tmp_path / "whole")
    sample = RejectionRun._sample

    def killed(self: RejectionRun, number: int, fingerprint: str | None) -> dict[str, Any]:
        if number == 2:
            raise KeyboardInterrupt
        return sample(self, number, fingerprint)

    monkeypatch.setattr(RejectionRun, "_sample", killed)
    with pytest.raises(KeyboardInterrupt):
        rejection(home, url, tmp_path / "killed")
    monkeypatch.undo()
    assert rejection(home, url, tmp_path / "killed") == whole
    weights = [(tmp_path / name / "checkpoint" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_a_service_that_is_not_there_is_told(home: Path, tmp_path: Path) -> None:
    config_of(home, tmp_path / "c.yaml")
    options = ["--config", tmp_path / "c.yaml", "--data", home / "data", "--out", tmp_path / "run"]
    result = CliRunner().invoke(app, ["train", "rejection", *map(str, options), "--url", "http://127.0.0.1:9"])
    assert (result.exit_code, "assay train rejection: " in result.output) == (2, True), result.output
