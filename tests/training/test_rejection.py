"""`assay train rejection`: rounds of sampling, picking and learning, over HTTP."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from assay_client.client import RewardClient
from assay_training.cli.main import app
from assay_training.config.base import read
from assay_training.config.rejection import RejectionConfig
from assay_training.rl.engine_check import EngineError
from assay_training.rl.rejection import RejectionRun
from assay_training.rollout.engines.transformers import TransformersEngine
from assay_training.rollout.rewards import open_patient_client
from assay_training.runs.directory import RunDirectory
from tests.training.test_ppo import TIMES, common, go, home, rows, url

__all__ = ["home", "url"]  # fixtures


def config_of(home: Path, path: Path, **changes: Any) -> RejectionConfig:
    config = common(home, path.parent) | {
        "rounds": 2,
        "prompts": 12,
        "samples": 16,
        "optimizer": {
            "learning_rate": 0.02, "batch_prompts": 6, "epochs": 25, "compute_dtype": "float32", "checkpoint_steps": 4
        },
    }  # fmt: skip
    config["rollout"] |= {"chunk_completions": 64, "max_new_tokens": 2}
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(config))
    return read(path, RejectionConfig)


def rejection(home: Path, url: str, out: Path, **changes: Any) -> list[dict[str, Any]]:
    config = config_of(home, out.parent / "c.yaml", **changes)
    with open_patient_client(url, config.reward) as client:
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
    parts = [row["part"] for row in rows(tmp_path / "run")]
    assert [parts.count(part) for part in ("round-1", "round-2")] == [50, 100]  # of 12 and of 24
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").is_file()


def test_every_round_reports_its_samples(home: Path, url: str, tmp_path: Path) -> None:
    results = rejection(home, url, tmp_path / "run", rollout={"max_new_tokens": 8}, optimizer={"epochs": 2})
    reported = [row for row in rows(tmp_path / "run") if row["part"] == "rounds"]
    done = [json.loads((tmp_path / "run" / f"round-{number}.json").read_text()) for number in (1, 2)]
    assert [row["step"] for row in reported] == [1, 2]
    for row, result, complete in zip(reported, results, done, strict=True):
        assert {key: row[key] for key in ("score", "best_score", "fingerprint")} == {
            key: result[key] for key in ("score", "best_score", "fingerprint")
        }
        assert row["dropped"] == sum(result["dropped"].values())
        assert 1 <= row["length"] <= 8
        assert 0 < row["eos_rate"] < 1
        assert -1 <= row["score_length_correlation"] <= 1
        assert row["rollout_s"] > 0
        assert row["logprob_mismatch"] < row["logprob_mismatch_limit"]
        assert len(complete["scores"]) == len(complete["best"])
        assert [max(scores) for scores in complete["scores"]] == [best["score"] for best in complete["best"]]
        every = [score for scores in complete["scores"] for score in scores]
        assert len(every) == 12 * 16 - row["dropped"]
        assert sum(every) / len(every) == pytest.approx(row["score"])


def test_a_round_that_is_not_sampled_from_the_round_before_is_refused(
    home: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine keeps the first adapter; also where the second round is sampled by a process of its own."""
    push, pushed = TransformersEngine.push, []

    def once(self: TransformersEngine, adapter: Path) -> None:
        pushed.append(adapter)
        if len(pushed) == 1:
            push(self, adapter)

    monkeypatch.setattr(TransformersEngine, "push", once)
    changes: dict[str, Any] = {"optimizer": {"epochs": 1, "learning_rate": 3e-4}}
    for _ in range(2):
        with pytest.raises(EngineError, match="rollout 2: the log-probabilities of engine and trainer differ"):
            rejection(home, url, tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "round-2.json").exists()


def test_ppo_goes_on_from_what_rejection_sampling_leaves(home: Path, url: str, tmp_path: Path) -> None:
    """Its reference is the new policy, not the one that rejection sampling began with."""
    rejection(home, url, tmp_path / "first", optimizer={"epochs": 1}, rounds=1)
    found = go(home, url, tmp_path / "second", steps=2, base=str(tmp_path / "first" / "checkpoint"))
    assert (found[0]["kl"], found[0]["kl_k3"], found[1]["kl"] != 0) == (0, 0, True)
    assert found[0]["logprob_mismatch"] < 1e-4


def test_a_run_killed_after_its_results_leaves_no_state_behind(
    home: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: RunDirectory) -> None:
        raise KeyboardInterrupt

    changes: dict[str, Any] = {"optimizer": {"epochs": 1}, "rounds": 1}
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "forget", killed)
        with pytest.raises(KeyboardInterrupt):
            rejection(home, url, tmp_path / "run", **changes)
    assert (tmp_path / "run" / "state").exists()
    rejection(home, url, tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "state").exists()


def test_lengths_that_are_all_equal_have_no_correlation(home: Path, url: str, tmp_path: Path) -> None:
    rejection(home, url, tmp_path / "run", rollout={"max_new_tokens": 1}, optimizer={"epochs": 1}, rounds=1)
    reported = rows(tmp_path / "run")[0]
    assert (reported["part"], reported["length"], "score_length_correlation" in reported) == ("rounds", 1.0, False)


def test_a_killed_rejection_run_goes_on_bit_for_bit(
    home: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its second round; after that was reported but not kept; and in the middle of a line."""
    whole, sample, write = rejection(home, url, tmp_path / "whole"), RejectionRun._sample, RunDirectory.write_json

    def before(self: RejectionRun, number: int, fingerprint: str | None) -> dict[str, Any]:
        if number == 2:
            raise KeyboardInterrupt
        return sample(self, number, fingerprint)

    def reported(self: RunDirectory, name: str, value: Any) -> None:
        if name == "round-2.json":
            raise KeyboardInterrupt
        write(self, name, value)

    for place, name, killed in ((RejectionRun, "_sample", before), (RunDirectory, "write_json", reported)):
        monkeypatch.setattr(place, name, killed)
        with pytest.raises(KeyboardInterrupt):
            rejection(home, url, tmp_path / "killed")
        monkeypatch.undo()
    assert rows(tmp_path / "killed")[-1]["part"] == "rounds"
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as stream:
        stream.write('{"part": "rounds", "st')
    assert rejection(home, url, tmp_path / "killed") == whole
    found = [[untimed(row) for row in rows(tmp_path / name)] for name in ("whole", "killed")]
    assert found[0] == found[1]
    weights = [(tmp_path / name / "checkpoint" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TIMES}


def test_a_round_of_more_prompts_than_there_are_is_refused(home: Path, url: str, tmp_path: Path) -> None:
    """Some would be asked twice, and the best of them would be of twice as many."""
    with pytest.raises(ValueError, match="12 prompts; the run needs at least 13"):
        rejection(home, url, tmp_path / "run", prompts=13)


def test_an_unreachable_service_is_named(home: Path, tmp_path: Path) -> None:
    config_of(home, tmp_path / "c.yaml")
    options = ["--config", tmp_path / "c.yaml", "--data", home / "data", "--out", tmp_path / "run"]
    result = CliRunner().invoke(app, ["train", "rejection", *map(str, options), "--url", "http://127.0.0.1:9"])
    assert (result.exit_code, "assay train rejection: " in result.output) == (2, True), result.output
    assert "http://127.0.0.1:9" in result.output
