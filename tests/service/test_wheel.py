"""Kernels of a wheel: which of them a start takes, and that they give the bits of those that a compiler builds here."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from benchmarks.starts import build_wheel, install_wheel, serve

from assay_service.scoring.kernels import build
from tests.service.test_native_missing import CPU, vectors

KINDS = {"AVX2": 0, "AVX512": 1, "AVX512 with bf16": 2}


def name_kind(kind: int) -> str:
    return build._name_library([*build._FLAGS, *build._KINDS[kind]])


@pytest.mark.parametrize("cpu", KINDS)
def test_a_cpu_takes_the_fastest_kind_that_it_can_run(
    cpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cpu.removesuffix(" with bf16"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "bf16" in cpu)
    folder = tmp_path / torch.__version__
    folder.mkdir()
    for kind in KINDS.values():
        (folder / name_kind(kind)).touch()
    assert len(list(folder.iterdir())) == 3
    flags = build._choose_flags()
    assert flags is not None
    assert build.find_packaged(flags, tmp_path) == folder / name_kind(KINDS[cpu])


def test_kernels_that_do_not_fit_are_not_taken_and_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*build._FLAGS, *build._KINDS[0]]
    assert build.find_packaged(flags, tmp_path / "none") is None  # a checkout, or a pure wheel
    (tmp_path / torch.__version__).mkdir()
    (tmp_path / torch.__version__ / name_kind(0)).touch()
    assert build.find_packaged(flags, tmp_path) == tmp_path / torch.__version__ / name_kind(0)
    monkeypatch.setattr(build, "_FILES", build._FILES[1:])  # other sources
    assert build.find_packaged(flags, tmp_path) == "they were built from other sources"
    was = torch.__version__
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert build.find_packaged(flags, tmp_path) == f"they were built for torch {was}, and this is torch 99.0"


@vectors
def test_kernels_that_the_system_cannot_load_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flags = build._choose_flags()
    assert flags is not None
    packaged = tmp_path / torch.__version__ / build._name_library(flags)
    packaged.parent.mkdir()
    packaged.write_bytes(b"for a newer glibc")
    monkeypatch.setattr(build, "_PACKAGED", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    build._load.cache_clear()
    assert "no-such-compiler is missing" in str(build.load_or_explain(torch.float32, CPU))
    build._load.cache_clear()
    assert packaged.exists()  # an installed file is not ours to remove
    first = next(record for record in caplog.records if record.levelno == logging.WARNING)
    assert f"the CPU kernels of the wheel are not used: {packaged} cannot be loaded" in first.getMessage()


def list_loaded(commands: Path, environment: dict[str, str], before: str = "pass") -> str:
    """Start Python on the wheel; return the name of the kernels that it loads, or why it loads none."""
    program = (
        f"import torch; {before}; from assay_service.scoring.kernels import build; "
        "why = build.load_or_explain(torch.float32, torch.device('cpu')); "
        "print(why or ' '.join(torch.ops.loaded_libraries))"
    )
    command = [str(commands / "python"), "-c", program]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.slow
@vectors
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the kernels are for x86-64")
def test_a_wheel_serves_the_logits_of_compiled_kernels_without_a_compiler(tiny: dict[str, Any], tmp_path: Path) -> None:
    commands = install_wheel(build_wheel(tmp_path / "dist", kernels=True), tmp_path / "venv")
    cache = tmp_path / "cache"
    plain = {"PATH": str(commands), "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    with_compiler = {**os.environ, "OMP_NUM_THREADS": "1"}  # and with the cache of this user
    items = [{"prompt": f"bake {i}?", "completion": "bread " * (1 + 7 * i)} for i in range(12)]
    scores, kernels = [], []
    for where, environment in ((commands, plain), (Path(sys.executable).parent, with_compiler)):
        with serve(where, tiny["root"] / "service.yaml", environment) as (url, _):
            answer = httpx.post(f"{url}/v1/score", json={"items": items}, timeout=60).raise_for_status().json()
            scores.append([(row["score"], row["signals"]) for row in answer["data"]])
            info = httpx.get(f"{url}/info").json()
            kernels.append({name: signal["kernels"] for name, signal in info["signals"].items()})
    assert scores[0] == scores[1]  # JSON has every bit
    assert len({score for score, _ in scores[0]}) == len(items)
    assert kernels[0] == kernels[1]
    assert kernels[0]["pref"] == {"name": "assay", "reason": None}
    assert not cache.exists()  # nothing was built

    # Every kind that this CPU can run loads; the others are in the wheel, too.
    site = next((tmp_path / "venv").glob("lib/python*/site-packages/assay_service/scoring/kernels/built/*"))
    assert site.name == torch.__version__
    assert {path.name for path in site.iterdir()} == {name_kind(kind) for kind in KINDS.values()}
    assert list_loaded(commands, plain | {"ATEN_CPU_CAPABILITY": "avx2"}) == str(site / name_kind(0))
    if torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        without = "torch.cpu._is_avx512_bf16_supported = lambda: False"
        assert list_loaded(commands, plain, without) == str(site / name_kind(1))
    other = list_loaded(commands, plain, "torch.__version__ = '99.0'")
    assert "the C++ compiler" in other  # kernels for another torch are not loaded
    assert "is missing" in other
