"""What a forward gives back serves the next one."""

import platform
import subprocess
import sys

import pytest

# Buffers as a forward has them: taken one after the other, freed together; later rounds need no fresh pages.
PROGRAM = """
import resource
import torch
from assay_service.memory import keep_freed_memory
keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers = [torch.ones(2**20) for _ in range(50)]
    del buffers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize("_", range(3))
def test_freed_memory_is_kept(_: int) -> None:
    """50 buffers of 4 MiB are 51,200 pages; left to itself glibc fetches them afresh most of the times, not always."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2_500
