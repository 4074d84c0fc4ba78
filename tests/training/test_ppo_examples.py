"""The configurations of `examples/` do what docs/ppo.md says of them, with what the repository holds."""

import json
import subprocess
from pathlib import Path

import pytest

from assay_client.client import RewardClient
from assay_training.config.base import read
from assay_training.config.ppo import PpoConfig
from assay_training.config.rejection import RejectionConfig
from tests.service.test_serve_process import ASSAY, served, wait_until_ready

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def test_they_are_configurations() -> None:
    assert read(EXAMPLES / "ppo.yaml", PpoConfig).reward == read(EXAMPLES / "rejection.yaml", RejectionConfig).reward


@pytest.mark.slow
def test_they_train_on_the_small_pipeline(tmp_path: Path) -> None:
    with served(ROOT / "tests" / "assets" / "pipeline" / "service.yaml") as (url, process):
        with RewardClient(url) as client:
            wait_until_ready(client, process)
        for kind in ("ppo", "rejection"):
            given = [
                "--config",
                f"examples/{kind}.yaml",
                "--data",
                "examples",
                "--out",
                str(tmp_path / kind),
                "--url",
                url,
            ]
            subprocess.run([str(ASSAY), "train", kind, *given], check=True, cwd=ROOT, timeout=600)
    report = [str(ASSAY), "report", str(tmp_path / "ppo"), str(tmp_path / "rejection"), "--json"]
    told = subprocess.run(report, check=True, stdout=subprocess.PIPE).stdout
    runs = {row["run"]: row for row in json.loads(told)}
    assert (runs["ppo"]["steps"], runs["ppo"]["kl"] > 0.1) == (20, True)
    rounds = json.loads((tmp_path / "rejection" / "results.json").read_text())
    assert all(of["best_score"] > of["score"] + 0.5 for of in rounds)
