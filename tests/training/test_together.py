"""Two processes that train together take the steps that one takes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.training import tiny
from tests.training.test_crossfit import Run, write_data

SCRIPT = Path(__file__).parent / "together.py"


def prepare(root: Path, **changes: Any) -> Run:
    base = tiny.save_base(root / "base")
    write_data(root / "data")
    config = tiny.write_config(root / "run.yaml", base, **({"split": {"held_out": 0.2}} | changes))
    return Run(config, root / "data", root / "out")


def go(run: Run, processes: int) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), run.config, run.data, run.out]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("margin", [None, {"kind": "batch_mean"}])
def test_two_processes_take_the_same_steps_as_one(margin: Any, tmp_path: Path) -> None:
    """fp32, over gloo: gradients, the batch's mean margin and the logged loss are those of the whole batch."""
    settings = {
        "learning_rate": 0.01,
        "batch_prompts": 8,
        "compute_dtype": "float32",
        "micro_batch_tokens": 60,
        "epochs": 3,
    }
    changes = {"objective": {"kind": "preference", "margin": margin}, "optimiser": settings}
    runs = [prepare(tmp_path / name, **changes) for name in ("one", "two")]
    for run, processes in zip(runs, (1, 2), strict=True):
        go(run, processes)
    one, two = (load_file(run.out / "checkpoint" / "adapter_model.safetensors") for run in runs)
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    logs = [[json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()] for run in runs]
    assert len(logs[0]) == len(logs[1]) > 2
    for a, b in zip(*logs, strict=True):
        assert a["step"] == b["step"]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
