"""`assay report`: runs laid over each other."""

import json
from pathlib import Path

from typer.testing import CliRunner

from assay_training.cli import app
from assay_training.evaluation.runs import names_of
from tests.training.test_ppo import go, home, url

__all__ = ["home", "url"]  # fixtures


def test_runs_are_laid_over_each_other(home: Path, url: str, tmp_path: Path) -> None:
    for seed in (1, 2):
        go(home, url, tmp_path / f"ppo-{seed}", seed=seed)
    runs = [str(tmp_path / f"ppo-{seed}") for seed in (1, 2)]
    result = CliRunner().invoke(app, ["report", *runs, "--json", "--html", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    last = json.loads((tmp_path / "ppo-2" / "metrics.jsonl").read_text().splitlines()[-1])
    assert [(r["run"], r["part"], r["steps"]) for r in found] == [("ppo-1", "ppo", 3), ("ppo-2", "ppo", 3)]
    assert (found[1]["score"], found[1]["kl"]) == (last["score"], last["kl"])
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 20
    assert "KL to the reference, nats per completion." in page
    assert "seconds in the engine, per step." in page
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(app, ["report", str(tmp_path / "empty")])
    assert (result.exit_code, "metrics.jsonl: no such file" in result.output) == (2, True)


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    assert names_of([tmp_path / "a" / "1", tmp_path / "b" / "1"]) == ["a/1", "b/1"]
    assert names_of([tmp_path / "a" / "1", tmp_path / "a" / "2"]) == ["1", "2"]
    assert names_of([tmp_path / "a" / "1"]) == ["1"]
    assert names_of([tmp_path / "a", tmp_path / "a" / "1"]) == ["a", "a/1"]
