"""Two processes that train together take the steps that one takes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from assay_training import sft
from assay_training.reward_model import command as reward
from tests.training import test_ppo, tiny
from tests.training import test_sft as policies
from tests.training.test_cross_validation import Run, write_data
from tests.training.test_ppo import home, url

__all__ = ["home", "url"]  # fixtures

SCRIPT = Path(__file__).parent / "together.py"
ALONE: dict[str, Callable[[Path, Path, Path], object]] = {"reward": reward.run, "sft": sft.run}


def prepare(root: Path, **changes: Any) -> Run:
    base = tiny.save_base(root / "base")
    write_data(root / "data")
    config = tiny.write_config(root / "run.yaml", base, **({"split": {"held_out": 0.2}} | changes))
    return Run(config, root / "data", root / "out")


def go(run: Run, processes: int, *arguments: str, kind: str = "reward") -> None:
    if processes == 1 and kind in ALONE:  # in this process, which has imported torch already
        ALONE[kind](run.config, run.data, run.out)
        return
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    command: list[object] = [sys.executable, *(launcher if processes > 1 else []), SCRIPT, kind]
    command += [run.config, run.data, run.out, *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


# With the usual epsilon Adam makes whole steps of the rounding errors of parameters without a gradient, such as biases
# of keys.
SETTINGS = {
    "learning_rate": 0.01,
    "epsilon": 1e-3,
    "batch_prompts": 8,
    "compute_dtype": "float32",
    "micro_batch_tokens": 60,
    "epochs": 3,
    "checkpoint_steps": 2,
}


def assert_same(one: Run, other: Run, weights: str) -> None:
    """Checkpoints and logged steps of two runs, but for rounding."""
    a, b = (load_file(run.out / "checkpoint" / weights) for run in (one, other))
    assert a.keys() == b.keys()
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-5
    logs = [[json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    assert len(logs[0]) == len(logs[1]) > 2
    for x, y in zip(*logs, strict=True):
        assert x["step"] == y["step"]
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-5)
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("margin", [None, {"kind": "batch_mean"}])
def test_two_processes_take_the_same_steps_as_one(margin: Any, tmp_path: Path) -> None:
    """fp32, over gloo: gradients, the batch's mean margin and the logged loss are those of the whole batch."""
    changes = {"objective": {"kind": "preference", "margin": margin}, "optimizer": SETTINGS}
    one, two = (prepare(tmp_path / name, **changes) for name in ("one", "two"))
    go(one, 1)
    go(two, 2)
    assert_same(one, two, "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False])
def test_two_processes_that_share_the_layers_take_the_same_steps(lora: bool, tmp_path: Path) -> None:
    """FSDP over gloo: each holds half of every layer; micro-batches come in odd numbers; margins need a first pass."""
    changes = {"objective": {"kind": "preference", "margin": {"kind": "batch_mean"}}, "optimizer": SETTINGS}
    changes |= {} if lora else {"lora": None}
    one, two = (prepare(tmp_path / name, **changes) for name in ("one", "two"))
    go(one, 1)
    go(two, 2, "sharded")
    assert_same(one, two, "adapter_model.safetensors" if lora else "model.safetensors")


@pytest.mark.slow
def test_a_killed_run_that_shares_layers_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    changes = {"objective": {"kind": "preference"}, "optimizer": SETTINGS, "lora": None}
    whole, killed = (prepare(tmp_path / name, **changes) for name in ("whole", "killed"))
    go(whole, 2, "sharded")
    with pytest.raises(AssertionError, match="killed at step 4"):
        go(killed, 2, "sharded", "killed")
    assert (killed.out / "state").exists()
    go(killed, 2, "sharded")
    files = [(run.out / "checkpoint" / "model.safetensors").read_bytes() for run in (whole, killed)]
    assert files[0] == files[1]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False])
def test_two_processes_that_share_a_policys_layers_take_the_same_steps(lora: bool, tmp_path: Path) -> None:
    """In two stages, with the embedding as its own output layer."""
    changes: dict[str, Any] = {} if lora else {"lora": None}
    one, two = (Run(*policies.prepare(tmp_path / name, **changes)) for name in ("one", "two"))
    go(one, 1, kind="sft")
    go(two, 2, "sharded", kind="sft")
    assert_same(one, two, "model.safetensors")


@pytest.mark.slow
def test_two_processes_that_share_a_rollout_take_the_same_steps(home: Path, url: str, tmp_path: Path) -> None:
    """PPO: each samples and scores half of the prompts; rewards, advantages and updates are those of all of them."""
    runs = [Run(tmp_path / name / "run.yaml", home / "data", tmp_path / name / "out") for name in ("one", "two")]
    for processes, run in enumerate(runs, start=1):
        test_ppo.config_of(home, run.config, optimizer=SETTINGS_PPO)
        go(run, processes, url, kind="ppo")
    one, two = (test_ppo.untimed(test_ppo.rows(run.out)) for run in runs)
    assert len(one) == 3
    for x, y in zip(one, two, strict=True):
        for name, value in x.items():
            assert y[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-5)), name
    a, b = (load_file(run.out / "adapter" / "adapter_model.safetensors") for run in runs)
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-5


SETTINGS_PPO = {"learning_rate": 0.01, "epsilon": 1e-3, "micro_batch_tokens": 60}
