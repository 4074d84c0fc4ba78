"""The configurations of `examples/` do what docs/ppo.md says of them, with what the repository holds."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from assay_client.client import RewardClient
from assay_client.in_process import AppTransport
from assay_service import settings
from assay_service.api.app import create_app
from assay_service.scoring.checkpoint import read_adapter
from assay_training.config.base import ConfigError, read
from assay_training.config.ppo import PpoConfig
from assay_training.config.rejection import RejectionConfig
from assay_training.rl.ppo import PpoRun
from assay_training.rl.rejection import RejectionRun
from tests.service.test_serve_process import ASSAY, served, wait_until_ready

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def test_they_are_configurations() -> None:
    assert read(EXAMPLES / "ppo.yaml", PpoConfig).reward == read(EXAMPLES / "rejection.yaml", RejectionConfig).reward


def test_they_name_the_adapters_of_the_small_pipeline() -> None:
    expected = read(EXAMPLES / "ppo.yaml", PpoConfig).reward.expect.signals
    assert set(expected) == {"preference", "absolute"}
    for name, signal in expected.items():
        assert signal.adapter_sha256 is not None
        for folder, equal in ((ROOT / "examples/pipeline", True), (ROOT / "service/assay_service/embedded", False)):
            adapter, _ = read_adapter(folder / name)
            assert adapter.sha256.startswith(signal.adapter_sha256) is equal


def test_against_the_embedded_service_they_stop_before_anything_is_sampled(tmp_path: Path) -> None:
    """It serves a blend of the same name, of other models."""
    app = create_app(settings.read_settings(settings.EMBEDDED))
    with RewardClient("http://assay.test", transport=AppTransport(app)) as client:
        for kind, run in (("ppo", PpoRun), ("rejection", RejectionRun)):
            config: Any = read(EXAMPLES / f"{kind}.yaml", PpoConfig if kind == "ppo" else RejectionConfig)
            with pytest.raises(ConfigError, match="preference: adapter_sha256 is 89afa757c45c28e6, not 38a5e97d5bcb"):
                run(config, EXAMPLES, tmp_path / kind, client).go()
            assert not (tmp_path / kind / "metrics.jsonl").exists()


@pytest.mark.slow
def test_smollm2_takes_a_step_on_the_embedded_blend(tmp_path: Path) -> None:
    """A shorter one than that of the example, which has 16 completions of up to 64 tokens."""
    keys = yaml.safe_load((EXAMPLES / "ppo-smollm2.yaml").read_text())
    keys["rollout"] |= {"completions": 4, "chunk_completions": 4, "max_new_tokens": 8}
    keys |= {"steps": 1, "ppo": keys["ppo"] | {"mini_batch": 4}}
    keys["optimizer"] |= {"compute_dtype": "float32"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(keys))
    app = create_app(settings.read_settings(settings.EMBEDDED))
    with RewardClient("http://assay.test", transport=AppTransport(app)) as client:
        PpoRun(read(tmp_path / "run.yaml", PpoConfig), EXAMPLES, tmp_path / "out", client).go()
    (row,) = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    assert row["kl"] == pytest.approx(0, abs=0.1)  # the policy of the first step is the reference itself
    assert -4 <= row["score"] <= 4  # clipped there


@pytest.mark.slow
def test_they_train_on_the_small_pipeline(tmp_path: Path) -> None:
    with served(ROOT / "examples" / "pipeline" / "service.yaml") as (url, process):
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
    printed = subprocess.run(report, check=True, stdout=subprocess.PIPE).stdout
    runs = {row["run"]: row for row in json.loads(printed)}
    assert (runs["ppo"]["steps"], runs["ppo"]["kl"] > 0.1) == (20, True)
    rounds = json.loads((tmp_path / "rejection" / "results.json").read_text())
    assert all(numbers["best_score"] > numbers["score"] + 0.5 for numbers in rounds)
