"""The processes that train together."""

import sys
from collections.abc import Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

T = TypeVar("T")


def accelerator() -> Accelerator:
    """On GPUs where there are any, else on CPUs, over gloo; left to itself accelerate takes each for the only one."""
    return Accelerator(cpu=not torch.cuda.is_available())


def tell(line: str) -> None:
    """Write a line to the terminal, once for all processes, without breaking a progress bar."""
    if accelerator().is_main_process:
        tqdm.write(line, file=sys.stderr)


def mine(things: Sequence[T]) -> list[T]:
    """Those of `things` that this process does, so that all are done once."""
    together = accelerator()
    return list(things[together.process_index :: together.num_processes])


def gathered(done: Sequence[T], count: int) -> list[T]:
    """What all processes have done of `count` things, each those that are `mine` there, in order; on every process."""
    together = accelerator()
    if together.num_processes == 1:
        return list(done)
    found = iter(gather_object([list(done)]))
    by_process = [iter(next(found)) for _ in range(together.num_processes)]
    return [next(by_process[i % together.num_processes]) for i in range(count)]
