"""A full disk ends a run with one sentence, leaves nothing half written, and the same command goes on afterwards.

A limit on the size of a file stands for the full disk: both make a write fail in the middle of a file.
"""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from assay_training.cli.main import app
from assay_training.errors import RunStopped
from assay_training.runs.files import replace_whole
from tests.training import test_cross_validation, test_sft


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Refuse to write files beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_directory(path: Path) -> None:
    path.mkdir()
    (path / "small").write_text("new")
    save_file({"a": torch.ones(9000)}, path / "large")


WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.write_text("x" * 36_000),
    "torch": lambda path: torch.save({"a": torch.ones(9000)}, path),
    "many tensors": lambda path: torch.save([torch.ones(10) for _ in range(300)], path),
    "safetensors": lambda path: save_file({"a": torch.ones(9000)}, path),
    "a directory": write_directory,
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("size", [100, 1000, 20_000])
def test_the_old_contents_stay_and_nothing_else(kind: str, size: int, tmp_path: Path) -> None:
    target = tmp_path / "x"
    if kind == "a directory":
        target.mkdir()
        (target / "old").write_text("old")
    else:
        target.write_text("old")
    with limited(size), pytest.raises(RunStopped, match=r"/x cannot be written: .*; free disk space"):
        replace_whole(target, WRITERS[kind])
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (target / "old" if kind == "a directory" else target).read_text() == "old"
    replace_whole(target, WRITERS[kind])
    assert not (target / "old").exists()


def test_an_error_that_is_not_about_the_disk_is_raised_as_it_is(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match=r"^a bug$"):
        replace_whole(tmp_path / "x", fail)
    assert not list(tmp_path.iterdir())


def find_sizes(out: Path) -> list[int]:
    """Return limits at which one large file of a finished run does not fit, and those that are smaller do."""
    weights = [*out.rglob("*.safetensors"), *out.rglob("*.pt")]
    return sorted({path.stat().st_size - 100 for path in weights})


@pytest.mark.parametrize("kind", ["reward", "reward, whole", "sft"])
def test_a_command_says_so_in_one_line_and_goes_on(kind: str, tmp_path: Path) -> None:
    if kind == "sft":
        config, data, out = test_sft.prepare(tmp_path)
    else:
        options: dict[str, Any] = {"lora": None} if kind == "reward, whole" else {}
        run = test_cross_validation.prepare(tmp_path, split={"held_out": 0.2}, **options)
        config, data, out = run.config, run.data, run.out
    words = ["train", kind.partition(",")[0], "--config", str(config), "--data", str(data), "--out"]
    done = CliRunner().invoke(app, [*words, str(out)])
    assert done.exit_code == 0, done.output
    sizes = find_sizes(out)
    assert sizes
    for size in sizes:
        again = tmp_path / f"again-{size}"
        with limited(size):
            result = CliRunner().invoke(app, [*words, str(again)])
        assert result.exit_code == 2, result.output
        last = result.output.strip().splitlines()[-1]
        assert last.startswith(f"assay train {words[1]}: {again}")
        assert "cannot be written" in last
        assert not [path for path in again.rglob("*") if path.name.endswith(".tmp")]
        assert not list(again.rglob("assay.json"))
        assert not [path for path in again.rglob("*.safetensors") if path.stat().st_size == size]
        result = CliRunner().invoke(app, [*words, str(again)])
        assert result.exit_code == 0, result.output
        for path in out.rglob("*.safetensors"):
            assert (again / path.relative_to(out)).read_bytes() == path.read_bytes()
