"""The processes that train together."""

import torch
from accelerate import Accelerator


def accelerator() -> Accelerator:
    """On GPUs where there are any, else on CPUs, over gloo; left to itself accelerate takes each for the only one."""
    return Accelerator(cpu=not torch.cuda.is_available())
