"""Serve a configuration in a process of its own, and read its metrics."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.contenders.base import find_free_port

START_S = 900  # a busy machine loads slowly
PROBE_S = 5.0
FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")


@contextmanager
def serve(config: Path | None, threads: int | None = None, checkout: Path | None = None) -> Iterator[str]:
    """Serve a configuration in a process of its own; give the address.

    Args:
        config: YAML configuration; None serves the embedded models.
        threads: number of threads that compute; None leaves it to torch.
        checkout: checkout of the version that is served; None serves the installed one.
    """
    url = f"http://127.0.0.1:{(port := find_free_port())}"
    command = [str(Path(sys.executable).with_name("assay")), "serve", "--port", str(port), "--log-level", "error"]
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    if checkout is not None:
        environment["PYTHONPATH"] = os.pathsep.join(str(checkout / part) for part in ("service", "clients"))
    process = subprocess.Popen(command + (["--config", str(config)] if config else []), env=environment)
    try:
        end_s = time.monotonic() + START_S
        while not is_ready(url):
            assert process.poll() is None, "the service ended"
            assert time.monotonic() < end_s, "the service did not start"
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def is_ready(url: str) -> bool:
    """Return whether the service at an address is ready."""
    try:
        return httpx.get(f"{url}/ready", timeout=PROBE_S).is_success
    except httpx.TransportError:
        return False


def read_samples(metrics: str) -> dict[str, float]:
    """Return the value of every sample of `/metrics` by its name, with the values of its labels behind it.

    An example is `assay_lookups_total hit`.
    """
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
    }


def describe_features() -> str:
    """Return which of the instructions that decide the speed this CPU has."""
    flags = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    return ", ".join(name for name in FEATURES if name in flags) or "none of " + ", ".join(FEATURES)
