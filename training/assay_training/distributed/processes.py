"""Share work between the processes that train together, and gather their results."""

import sys
from collections.abc import Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

T = TypeVar("T")


def get_accelerator() -> Accelerator:
    """Return the processes that train together: on GPUs if there are any, otherwise on CPUs over gloo."""
    # Without `cpu=True`, accelerate on a machine without GPUs would take every process for a run of its own.
    return Accelerator(cpu=not torch.cuda.is_available())


def print_once(line: str) -> None:
    """Write a line to standard error, once for all processes, without breaking a progress bar."""
    if get_accelerator().is_main_process:
        tqdm.write(line, file=sys.stderr)


def select_own(items: Sequence[T]) -> list[T]:
    """Return every N-th item for this one of N processes, so that each item belongs to exactly one process."""
    together = get_accelerator()
    return list(items[together.process_index :: together.num_processes])


def gather_results(results: Sequence[T], count: int) -> list[T]:
    """Return the results for all `count` items, in the items' order, in every process.

    Args:
        results: results of this process for the items that `select_own` gave it, in order. They must be picklable.
        count: number of items over all processes.
    """
    together = get_accelerator()
    if together.num_processes == 1:
        return list(results)
    # `gather_object` joins lists, so each process wraps its list to keep it apart from the others'.
    gathered = iter(gather_object([list(results)]))
    by_process = [iter(next(gathered)) for _ in range(together.num_processes)]
    # `select_own` dealt the items in turn.
    return [next(by_process[i % together.num_processes]) for i in range(count)]
