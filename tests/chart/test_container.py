"""The Dockerfile: its linter, and its steps of installation in a fresh virtual environment."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.chart.render import ROOT, TOOLS


@pytest.mark.chart
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([TOOLS / "bin/hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.chart
def test_what_the_dockerfile_copies_is_in_its_context() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {source for line in copied for source in line.split()}
    assert {source.split("/")[0] for source in sources} == allowed
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.slow
def test_the_steps_of_the_image_install_a_service_without_a_compiler(tmp_path: Path) -> None:
    """The environment is fresh, there is no cache, and no weights are installed but the two small adapters."""
    venv = tmp_path / "venv"
    # pip's own index, because others cannot be reached everywhere.
    environment = os.environ | {"DEVICE": "cpu", "TORCH_INDEX": "", "PYTHONPATH": ""}
    install: list[str | Path] = ["sh", ROOT / "service/container/install.sh", venv]
    subprocess.run(install, cwd=ROOT, env=environment, check=True, timeout=3000)
    assert subprocess.run([venv / "bin/assay", "serve", "--help"], check=True, capture_output=True).stdout
    weights = [path for path in venv.rglob("*.safetensors") if path.stat().st_size > 2**21]
    assert weights == []
    if os.uname().machine == "x86_64":
        assert len(list(venv.rglob("scoring/kernels/built/*/*.so"))) == 3
        # The service finds one of them, though there is no compiler.
        program = (
            "import torch; from assay_service.scoring.kernels.build import load_or_explain; "
            "print(load_or_explain(torch.float32, torch.device('cpu')))"
        )
        run = environment | {"XDG_CACHE_HOME": "/proc/none", "CXX": "/nonexistent"}
        done = subprocess.run([venv / "bin/python", "-c", program], env=run, check=True, capture_output=True, text=True)
        assert done.stdout.strip() in ("None", "they need a CPU with AVX2 or AVX-512")


@pytest.mark.chart
def test_another_device_is_refused(tmp_path: Path) -> None:
    command: list[str | Path] = ["sh", ROOT / "service/container/install.sh", tmp_path / "venv"]
    done = subprocess.run(command, env=os.environ | {"DEVICE": "tpu"}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "DEVICE=tpu: use cpu or cuda\n")
    assert list(tmp_path.iterdir()) == []
