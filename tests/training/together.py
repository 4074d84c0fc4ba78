"""Trains a tiny model; started in one process or in two by `test_together.py`.

torchrun --nproc_per_node 2 tests/training/together.py reward|sft CONFIG DATA OUT [sharded]

accelerate takes an FSDP configuration on GPUs only, so `sharded` has it say that it took one; all else is as there.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from assay_training.loops import run, sft


class Watched(torch.optim.AdamW):
    """Knows how much of what it optimises is in this process.

    Attributes:
        held: numbers that this process holds, and all, of the parameters that are spread.
    """

    held: tuple[int, int]

    def __init__(self, groups: Any, **settings: Any) -> None:
        super().__init__(groups, **settings)
        spread = [p for group in self.param_groups for p in group["params"] if isinstance(p, DTensor)]
        Watched.held = sum(p.to_local().numel() for p in spread), sum(p.numel() for p in spread)


if __name__ == "__main__":
    kind, arguments, sharded = sys.argv[1], map(Path, sys.argv[2:5]), sys.argv[5:] == ["sharded"]
    torch.optim.AdamW = Watched  # type: ignore[misc, assignment]
    if sharded:
        Accelerator.distributed_type = property(lambda _: DistributedType.FSDP)
    {"reward": run.run, "sft": sft.run}[kind](*arguments)
    mine, everybodys = Watched.held
    assert (0 < mine < everybodys) if sharded else everybodys == 0, (mine, everybodys)
