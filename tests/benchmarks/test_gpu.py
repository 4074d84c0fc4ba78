"""What `benchmarks/gpu.sh` measures, by the same modules on a CPU with a tiny model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.gpu import parts
from benchmarks.gpu.rows import Row, Rows
from benchmarks.gpu.shapes import SHAPES, count_flop

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def subject() -> parts.Subject:
    return parts.Subject(SHAPES["tiny"], CPU)


@pytest.mark.parametrize("part", parts.PARTS)
def test_every_part_gives_numbers(part: str, subject: parts.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "P99_S", 600)  # this machine may be busy
    numbers = parts.PARTS[part](subject)
    assert numbers.get("passed", True)
    json.dumps(numbers, allow_nan=False)
    if part not in {"invariance", "parity"}:
        assert numbers["items/s"] > 0
    if part == "invariance":
        assert numbers["compared"] == 8 * (4 + 1 + 2)  # offsets 0, 40, 80 and 120; one copy and two


def test_a_wrong_logit_fails_parity_and_one_that_depends_on_the_batch_invariance(
    subject: parts.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = subject.model.logits
    monkeypatch.setattr(subject.model, "logits", lambda items, name: right(items, name) + len(items) * 1e-3)
    assert not parts.check_invariance(subject)["passed"]
    assert not parts.check_parity(subject)["passed"]
    monkeypatch.setattr(subject.model, "logits", lambda items, name: right(items, name) * torch.nan)
    with pytest.raises(ValueError, match="a logit is not a number"):
        parts.check_invariance(subject)
    with pytest.raises(ValueError, match="a logit is not finite"):
        parts.check_parity(subject)


def test_operations_are_those_of_the_published_shapes() -> None:
    """Twice the weights of the layers for each token: 0.44 and 6.98 billion without embedding and output layer."""
    for name, weights in (("qwen3-0.6b", 440e6), ("llama-3.1-8b", 6.98e9)):
        assert count_flop(SHAPES[name].config, 1) == pytest.approx(2 * weights, rel=2e-3)


def run(tmp_path: Path, *options: str) -> tuple[int, list[dict[str, Any]], str]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--shape", "tiny"]
    command += ["--out", str(tmp_path / "gpu")]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads((tmp_path / "gpu.json").read_text())["rows"], (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_a_named_row_and_the_others_have_numbers(tmp_path: Path) -> None:
    status, rows, page = run(tmp_path, "--limit", "latency=0.001", "--limit", "load=300", "--limit", "parity=120")
    assert status == 0  # parity and invariance hold
    assert [row["part"] for row in rows] == ["load", *list(parts.PARTS)[:4], "load", *list(parts.PARTS)[4:]]
    (failed,) = [row for row in rows if row["numbers"] is None]
    assert (failed["part"], failed["reason"]) == ("latency", "not finished within 0.001 s")
    assert "| tiny | latency | **failed**: not finished within 0.001 s |" in page


def test_a_model_that_is_not_loaded_fails_every_part_and_the_run(tmp_path: Path) -> None:
    status, rows, page = run(tmp_path, "--limit", "load=0.001")
    assert status == 1
    assert [row["part"] for row in rows] == list(parts.PARTS)
    assert {row["reason"] for row in rows} == {"not run, because the model was not loaded: not finished within 0.001 s"}
    assert page.count("**failed**") == len(rows)


def test_a_run_holds_only_if_parity_and_invariance_were_shown_for_every_shape() -> None:
    rows = Rows(0)
    assert not rows.holds(["tiny"])
    rows.add(Row("tiny", "parity", {"passed": True}))
    rows.add(Row("tiny", "invariance", {"passed": False}))
    assert not rows.holds(["tiny"])
    rows.add(Row("tiny", "invariance", {"passed": True}))
    assert rows.holds(["tiny"])
    assert not rows.holds(["tiny", "qwen3-0.6b"])
