"""What a forward gives back serves the next one."""

import platform
import subprocess
import sys

import pytest

# Buffers as a forward has them: taken one after the other, freed together; the second round needs no fresh pages.
PROGRAM = """
import resource
import torch
from assay_service.scoring.memory import keep_freed_memory
{call}
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers = [torch.ones(2**20) for _ in range(50)]
    del buffers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(call=call)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept() -> None:
    """50 buffers of 4 MiB are 51,200 pages."""
    assert faults("pass") > 10_000
    assert faults("keep_freed_memory()") < 2_500
