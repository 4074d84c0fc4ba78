"""Numbers of a training: what `compute_dtype: auto` takes on CPUs with and without instructions for bfloat16."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from assay_service.scoring.kernels.build import has_units
from assay_training.config.base import read
from assay_training.config.model import Adam
from assay_training.config.reward import RewardConfig
from assay_training.distributed.numbers import decide_compute_dtype

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
READ = f"""
from pathlib import Path
from assay_training.config.base import read
from assay_training.config.model import Adam
from assay_training.config.sft import SftConfig
from assay_training.distributed.numbers import decide_compute_dtype

config = decide_compute_dtype(read(Path({str(CONFIGS / "pipeline" / "sft.yaml")!r}), SftConfig))
print([stage.optimizer.compute_dtype for stage in config.stages])
print(decide_compute_dtype(Adam(learning_rate=1, compute_dtype="bfloat16")).compute_dtype)
"""


def test_a_cpu_without_bfloat16_trains_every_stage_in_float32() -> None:
    # torch and oneDNN then use the instructions of a CPU without AVX-512.
    older = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", READ]
    done = subprocess.run(command, env=older, capture_output=True, text=True, check=True, timeout=100)
    stages, declared = done.stdout.splitlines()
    assert set(stages.strip("[]").split(", ")) == {"'float32'"}
    # What the file declares is never changed, but it is said.
    assert declared == "bfloat16"
    assert "compute_dtype: this CPU has no instructions for bfloat16" in done.stderr


def test_auto_is_decided_for_this_machine_and_the_rest_is_kept() -> None:
    config = read(CONFIGS / "preference.yaml", RewardConfig)
    decided = decide_compute_dtype(config)
    fast = has_units("bfloat16", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    assert decided.optimizer.compute_dtype == ("bfloat16" if fast else "float32")
    assert decided.base_reference == config.base_reference
    assert decided.model_dump(exclude={"optimizer"}) == config.model_dump(exclude={"optimizer"})
    exact = Adam(learning_rate=1, compute_dtype="float32")
    assert decide_compute_dtype(exact) == exact
