"""Trains a tiny reward model; started in one process or in two by `test_together.py`.

torchrun --nproc_per_node 2 tests/training/together.py CONFIG DATA OUT
"""

import sys
from pathlib import Path

from assay_training.loops.run import run

if __name__ == "__main__":
    run(*map(Path, sys.argv[1:]))
