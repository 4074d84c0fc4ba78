"""The memory of the command does not grow with the file; a quick server makes the load, and no number is judged."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow
import pytest
from pyarrow import parquet

from tests.client.test_client_slow import ASSAY, slow

if TYPE_CHECKING:
    from tests.client.conftest import Loopback

__all__ = ["slow"]

FEW, MANY = 20_000, 100_000
ALLOWED_KIB = 24 * 1024  # between the two; the long file has 40 MB of rows more
SAMPLED = 10_000  # rows that `assay diff` keeps, instead of 100,000: two services are asked for every row
PROMPT = "p" * 500


def write(path: Path, rows: int) -> None:
    if path.suffix == ".jsonl":
        with path.open("w") as file:
            file.writelines(json.dumps({"prompt": PROMPT, "completion": str(n)}) + "\n" for n in range(rows))
        return
    table = pyarrow.table(
        {"prompt": [PROMPT + str(n) for n in range(rows)], "completion": [str(n) for n in range(rows)]}
    )
    parquet.write_table(table, path, row_group_size=10_000)


def measure_kib(*command: str) -> int:
    """The most memory that a command had, of the process itself."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stderr=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_five_times_the_rows_need_no_more_memory(
    slow: Callable[[float], "Loopback"], tmp_path: Path, ending: str
) -> None:
    server = slow(0.0)
    used = []
    for rows in (FEW, MANY):
        write(tmp_path / f"in.{ending}", rows)
        words = ["score", str(tmp_path / f"in.{ending}"), "-o", str(tmp_path / f"out.{ending}"), "--url", server.url]
        used.append(measure_kib(str(ASSAY), *words, "--chunk-size", "1024"))
        server.asked.clear()
    print(f"{ending}: {used[0] / 1024:.0f} MiB for {FEW} rows, {used[1] / 1024:.0f} MiB for {MANY}")  # noqa: T201
    assert used[1] - used[0] < ALLOWED_KIB


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_comparison_of_five_times_the_rows_needs_no_more_memory(
    slow: Callable[[float], "Loopback"], tmp_path: Path
) -> None:
    """Of files that both fill the sample of scores."""
    server = slow(0.0)
    code = f"from assay_client import _spread, cli; _spread.SAMPLE_PAIRS = {SAMPLED}; cli.main()"
    used = []
    for rows in (FEW, MANY):
        write(tmp_path / "in.jsonl", rows)
        words = ["diff", server.url, server.url, str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "d.json")]
        used.append(measure_kib(sys.executable, "-c", code, *words, "--chunk-size", "1024"))
        server.asked.clear()
    print(f"diff: {used[0] / 1024:.0f} MiB for {FEW} rows, {used[1] / 1024:.0f} MiB for {MANY}")  # noqa: T201
    assert used[1] - used[0] < ALLOWED_KIB
