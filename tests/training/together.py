"""Trains a tiny model; started in one process or in two by `test_together.py`.

torchrun --nproc_per_node 2 tests/training/together.py reward|sft|ppo CONFIG DATA OUT [sharded] [killed] [http://…]

accelerate takes an FSDP configuration on GPUs only, so `sharded` has it say that it took one; all else is as there.
"""

import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from assay_training import sft
from assay_training.reward_model import command
from assay_training.rl import ppo
from assay_training.rollout.completion import Completion, Ids
from assay_training.rollout.engines.transformers import TransformersEngine
from assay_training.runs.metrics import MetricsWriter


class Watched(torch.optim.AdamW):
    """An AdamW that knows which share of its parameters is in this process.

    Attributes:
        held: numbers that this process holds, and all, of the parameters that are spread.
    """

    held: tuple[int, int]

    def __init__(self, groups: Any, **settings: Any) -> None:
        super().__init__(groups, **settings)
        spread = [p for group in self.param_groups for p in group["params"] if isinstance(p, DTensor)]
        Watched.held = sum(p.to_local().numel() for p in spread), sum(p.numel() for p in spread)


def killed(self: MetricsWriter, row: Any) -> None:
    if row["step"] == 4:
        sys.exit("killed at step 4")


generate = TransformersEngine.generate


def alone(self: TransformersEngine, prompts: Sequence[Ids], seed: int) -> list[Completion]:
    """Every prompt with a seed of its own, so that it does not matter which process answers it."""
    return [generate(self, [prompt], zlib.crc32(bytes(str(prompt), "ascii")))[0] for prompt in prompts]


if __name__ == "__main__":
    kind, sharded = sys.argv[1], "sharded" in sys.argv[5:]
    config, data, out = map(Path, sys.argv[2:5])
    torch.optim.AdamW = Watched  # type: ignore[misc, assignment]
    if sharded:
        Accelerator.distributed_type = property(lambda _: DistributedType.FSDP)
    if "killed" in sys.argv[5:]:
        MetricsWriter.log = killed  # type: ignore[method-assign]
    if kind == "ppo":
        TransformersEngine.generate = alone  # type: ignore[method-assign]
        ppo.run(config, data, out, sys.argv[-1])
    elif kind == "sft":
        sft.run(config, data, out)
    else:
        command.run(config, data, out)
    mine, everybodys = Watched.held
    assert (0 < mine < everybodys) if sharded else everybodys == 0, (mine, everybodys)
