"""Seconds until the service is ready: with the kernels of a wheel, with a compiler, and when they were built before.

    python -m benchmarks.starts [--out benchmarks/results/starts] [--rounds 3]

Both wheels are built of this checkout: one with kernels (`make wheel`) and a pure one. Each is installed into a fresh
environment that sees the packages of this one. A round starts each case once, and a first start has an empty cache. The
model is the random Llama of 84 million parameters.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.contenders.base import find_free_port
from benchmarks.contenders.ours import write_configuration
from benchmarks.models import make_words, write_llama
from benchmarks.served import START_S, is_ready
from benchmarks.written import describe_machine, write

ROOT = Path(__file__).parent.parent
WHEEL, COMPILER, SECOND = (
    "first start, wheel with kernels",
    "first start, compiler",
    "second start, kernels in the cache",
)


def build_wheel(out: Path, *, kernels: bool) -> Path:
    """Build a wheel of this checkout into `out`, with compiled kernels or pure, and return its path."""
    python = Path(sys.executable)
    if kernels:
        # What is installed stays as it is, though `make` would bring it up to date.
        command = ["make", "--old-file=.venv/.installed", "wheel", f"OUT={out}", f"BIN={python.parent}"]
    else:
        command = [str(python), "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), "."]
    subprocess.run(command, check=True, cwd=ROOT)
    (wheel,) = out.glob("*.whl")
    return wheel


def install_wheel(wheel: Path, directory: Path) -> Path:
    """Install a wheel into a fresh environment that sees this one's packages; return the folder of its commands."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    python = directory / "bin/python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(command, check=True)
    (site,) = directory.glob("lib/python*/site-packages")
    # Paths of other .pth files are not followed, so the editable installation of this checkout is not seen.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return directory / "bin"


@contextmanager
def serve(commands: Path, config: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    """Serve a configuration by the `assay` of an environment; give the address and the seconds until it was ready."""
    url = f"http://127.0.0.1:{(port := find_free_port())}"
    began_s = time.monotonic()
    command = [str(commands / "assay"), "serve", "--config", str(config), "--port", str(port)]
    process = subprocess.Popen(command, env=dict(environment), cwd=commands)
    try:
        while not is_ready(url):
            assert process.poll() is None, "the service ended"
            assert time.monotonic() < began_s + START_S, "the service did not start"
            time.sleep(0.1)
        yield url, time.monotonic() - began_s
    finally:
        process.terminate()
        process.wait()


def read_cpu_s() -> float:
    """Return the CPU seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(packed: Path, pure: Path, config: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Measure the seconds of each case and round."""
    seconds: dict[str, list[dict[str, float]]] = {SECOND: [], WHEEL: [], COMPILER: []}
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as filled:
            for case, commands, cache in ((COMPILER, pure, filled), (SECOND, pure, filled), (WHEEL, packed, empty)):
                before_s = read_cpu_s()
                with serve(commands, config, plain | {"XDG_CACHE_HOME": cache}) as (_, ready_s):
                    pass
                seconds[case].append({"ready_s": ready_s, "cpu_s": read_cpu_s() - before_s})
                print(case, seconds[case][-1], flush=True)
    return seconds


def main() -> None:
    """Measure, print, and write a JSON and a Markdown file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "starts")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        model = write_llama(directory / "model", make_words())
        packed, pure = (
            install_wheel(build_wheel(directory / f"wheel-{name}", kernels=kernels), directory / name)
            for name, kernels in (("packed", True), ("pure", False))
        )
        seconds = measure(packed, pure, write_configuration(model, 0), arguments.rounds)
    rows = [{"case": case, "rounds": seen} for case, seen in seconds.items()]
    text = (
        f"# Start of the service\n\n`python -m benchmarks.starts --rounds {arguments.rounds}`; {describe_machine()}. "
        "The model is the random Llama of 84 million parameters. Seconds until `/ready` is 200, and CPU seconds of the "
        f"service and its compiler until it has ended. Load average at the end: {os.getloadavg()[0]:.0f} on "
        f"{os.cpu_count()} cores.\n\n"
    )
    lines = ["| case | median s | min | max | median CPU s |", "|---|---|---|---|---|"]
    for case, seen in seconds.items():
        ready, cpu = ([one[key] for one in seen] for key in ("ready_s", "cpu_s"))
        ends = f"{min(ready):.1f} | {max(ready):.1f}"
        lines.append(f"| {case} | {statistics.median(ready):.1f} | {ends} | {statistics.median(cpu):.1f} |")
    write(arguments.out, text, lines, rows)


if __name__ == "__main__":
    main()
