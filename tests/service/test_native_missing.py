"""What a machine says that cannot have the kernels, or has no units for a dtype."""

import platform
import re
from pathlib import Path

import pytest
import torch

from assay_service.scoring.kernels import build

CPU = torch.device("cpu")
vectors = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith(("AVX2", "AVX512")), reason="without AVX2 nothing is built"
)


@vectors
@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", r"the C\+\+ compiler no-such-compiler is missing; install g\+\+, or set CXX"),
        ("false", "false returned 1 and printed nothing"),
    ],
)
def test_a_machine_without_a_compiler_says_so(
    compiler: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    build._load.cache_clear()
    assert re.search(reason, str(build.load_or_explain(torch.float32, CPU)))
    assert not list((tmp_path / "assay" / "kernels").iterdir())  # nothing half built is left
    (warned,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned.startswith("no CPU kernels; torch's slower operators are used instead: they could not be built")
    build._load.cache_clear()


@vectors
def test_a_cache_that_cannot_be_written_is_reported_with_the_variable_that_moves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")  # nobody can write there
    build._load.cache_clear()
    reason = str(build.load_or_explain(torch.float32, CPU))
    build._load.cache_clear()
    assert reason.endswith("set XDG_CACHE_HOME to a writable directory")


def test_a_cpu_without_vectors_of_eight_numbers_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    build._load.cache_clear()
    assert build.load_or_explain(torch.float32, CPU) == "they need a CPU with AVX2 or AVX-512"
    build._load.cache_clear()


@pytest.mark.parametrize(("bf16", "amx"), [(False, False), (True, False), (False, True)])
def test_bf16_without_units_of_the_cpu_is_called_slow(bf16: bool, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(build, "_load", lambda: "nothing is built")  # else a trial on this CPU decides
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    slow = build.explain_slow_dtype("bfloat16", CPU)
    if bf16 or amx:
        assert slow is None
    else:
        assert slow is not None
        assert "declare `compute: float32`" in slow
    assert build.explain_slow_dtype("float32", CPU) is None
    assert build.explain_slow_dtype("bfloat16", torch.device("cuda")) is None
