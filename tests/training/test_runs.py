"""`assay report`: runs compared, also those that still run, were killed, or have not begun."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from assay_training.cli.main import app
from assay_training.evaluation import plots
from assay_training.evaluation.runs import name_runs
from assay_training.records.record import RecordError
from assay_training.records.rows import read_json_lines
from assay_training.runs.metrics import MetricsWriter
from tests.training.test_ppo import go, home, url

__all__ = ["home", "url"]  # fixtures
CRS = {"model": "crs", "weights": None, "value": "logit"}
WIDTH = "100"


def written(
    run: Path, scores: Sequence[object], config: Mapping[str, Any], *, finished: bool = True, part: str = "ppo"
) -> Path:
    """A run directory by hand, a step per score."""
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"config": config}))
    rows = [{"part": part, "step": i, "score": score, "fingerprint": "f" * 64} for i, score in enumerate(scores)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        (run / "results.json").write_text("{}")
    return run


def report(*arguments: Path | str) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)], env={"COLUMNS": WIDTH})


def records(*runs: Path) -> list[dict[str, Any]]:
    result = report(*runs, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def refused(*runs: Path | str) -> str:
    result = report(*runs)
    assert result.exit_code == 2, result.output
    return str(result.output)


def test_runs_are_compared(home: Path, url: str, tmp_path: Path) -> None:
    for seed in (1, 2):
        go(home, url, tmp_path / f"ppo-{seed}", seed=seed)
    runs = [tmp_path / f"ppo-{seed}" for seed in (1, 2)]
    result = report(*runs, "--json", "--html", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    last = json.loads((tmp_path / "ppo-2" / "metrics.jsonl").read_text().splitlines()[-1])
    assert [(r["run"], r["part"], r["steps"]) for r in found] == [("ppo-1", "ppo", 3), ("ppo-2", "ppo", 3)]
    assert [(r["reward"], r["of"], r["finished"]) for r in found] == [("mix", 3, True)] * 2
    assert (found[1]["score"], found[1]["kl"]) == (last["score"], last["kl"])
    page = (tmp_path / "page.html").read_text()
    captions = re.findall(r"<figure><figcaption>([^<]+)\.</figcaption><svg", page)
    assert len(captions) == page.count("<svg") == 25
    assert {
        "score, mean over completions",
        "KL divergence to the reference policy, nats per completion",
        "seconds of generation per step",
        "skipped updates per step",
        "completions dropped for want of a score, per step",
        "policy loss",
    } <= set(captions)
    assert all(str(run / name) in page for run in runs for name in ("run.json", "metrics.jsonl"))


def test_runs_are_named_by_the_part_of_the_path_that_differs(tmp_path: Path) -> None:
    assert name_runs([tmp_path / "a" / "1", tmp_path / "b" / "1"]) == ["a/1", "b/1"]
    assert name_runs([tmp_path / "a" / "1", tmp_path / "a" / "2"]) == ["1", "2"]
    assert name_runs([tmp_path / "a" / "1"]) == ["1"]
    assert name_runs([tmp_path / "a", tmp_path / "a" / "1"]) == ["a", "a/1"]


def test_half_a_line_at_the_end_is_an_unfinished_step(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole", [1.0, 2.0, 3.0], {"reward": CRS})
    killed = written(tmp_path / "killed", [1.0, 2.0], {"reward": CRS}, finished=False)
    metrics = killed / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"part": "ppo", "step": 2, "sco')
    assert [(r["run"], r["steps"], r["score"]) for r in records(whole, killed)] == [("whole", 3, 3), ("killed", 2, 2)]
    with pytest.raises(RecordError, match=r"metrics\.jsonl:3: Unterminated string"):  # data are read as before
        list(read_json_lines(metrics))
    metrics.write_text(metrics.read_text() + "\n")
    assert f"{metrics}:3: " in refused(whole, killed)


def test_a_whole_line_without_its_newline_is_a_step(tmp_path: Path) -> None:
    run = written(tmp_path / "run", [1.0, 2.0], {"reward": CRS})
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().rstrip("\n"))
    assert records(run)[0]["steps"] == 2


def test_a_row_after_a_line_without_its_newline_is_a_row_of_its_own(tmp_path: Path) -> None:
    run = written(tmp_path / "run", [1.0, 2.0], {"reward": CRS}, finished=False)
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().rstrip("\n"))
    metrics = MetricsWriter(run, "ppo")
    metrics.begin(2)
    metrics.log({"step": 2, "score": 3.0})
    metrics.end()
    assert records(run)[0]["steps"] == 3


def test_runs_without_a_step_do_not_affect_the_others(tmp_path: Path) -> None:
    done = written(tmp_path / "done", [1.0], {"reward": CRS})
    begun = written(tmp_path / "begun", [], {"reward": CRS}, finished=False)
    at_once = written(tmp_path / "at-once", [], {"reward": CRS}, finished=False)
    (at_once / "metrics.jsonl").unlink()
    assert [r["run"] for r in records(done, begun, at_once)] == ["done"]
    assert "Runs without a finished step are not shown: begun, at-once." in report(done, begun, at_once).output
    assert f"{begun}, {at_once}: no run has a finished step" in refused(begun, at_once)
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: not the directory of a run: it has neither metrics.jsonl nor run.json" in refused(
        done, tmp_path / "empty"
    )


def test_a_run_that_is_not_finished_says_how_far_it_is(tmp_path: Path) -> None:
    runs = [
        written(tmp_path / "finished", [1.0] * 8, {"reward": CRS, "steps": 8}),
        written(tmp_path / "half", [1.0] * 5, {"reward": CRS, "steps": 8}, finished=False),
        written(tmp_path / "nearly", [1.0] * 8, {"reward": CRS, "steps": 8}, finished=False),
        written(tmp_path / "sft", [1.0] * 6, {"stages": []}, finished=False, part="sft"),
        written(tmp_path / "picked", [1.0], {"reward": CRS, "rounds": 2}, finished=False, part="rounds"),
    ]
    assert [(r["steps"], r["of"], r["finished"]) for r in records(*runs)] == [
        (8, 8, True),
        (5, 8, False),
        (8, 8, False),
        (6, None, False),
        (1, 2, False),
    ]
    lines = report(*runs).output.splitlines()
    for run, steps in zip(runs, (" 8 ", "5 of 8", "8, unfinished", "6, unfinished", "1 of 2"), strict=True):
        assert any(line.strip().startswith(run.name) and steps in line for line in lines), (run, lines)
    assert all(len(line) <= int(WIDTH) for line in lines)


def test_runs_show_their_reward(tmp_path: Path) -> None:
    weights = {"absolute": 0.75, "preference": 0.25}
    crs = written(tmp_path / "crs", [1.0], {"reward": CRS})
    bounded = written(tmp_path / "bounded", [0.5], {"reward": CRS | {"model": "absolute", "value": "probability"}})
    blend = written(tmp_path / "blend", [1.0], {"reward": CRS | {"model": None, "weights": weights}})
    turned = dict(reversed(weights.items()))
    same = written(tmp_path / "same", [1.0], {"reward": CRS | {"model": None, "weights": turned}})
    sft = written(tmp_path / "sft", [1.0], {"stages": []}, part="sft")
    by_weights = "0.25 preference + 0.75 absolute"
    found = records(crs, bounded, blend, same, sft)
    assert [r["reward"] for r in found] == ["crs", "p(absolute)", by_weights, by_weights, None]
    apart = "The runs have different rewards: do not compare their scores."
    assert apart in report(crs, bounded).output
    assert apart not in report(blend, same, sft).output
    assert report(crs, bounded, "--html", tmp_path / "page.html").exit_code == 0
    labels = re.findall(r"<!-- (\w+: [^>]+) -->", (tmp_path / "page.html").read_text())
    assert labels == ["crs: crs", "bounded: p(absolute)"]


def test_one_reward_from_different_models_is_reported(tmp_path: Path) -> None:
    old, new = (written(tmp_path / name, [1.0], {"reward": CRS}) for name in ("old", "new"))
    assert "different" not in report(old, new).output
    metrics = new / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("f" * 64, "0" * 64))
    printed = " ".join(report(old, new).output.split())
    assert "Scores of crs come from different models, so do not compare them. Fingerprints: ffffffff in old;" in printed


@pytest.mark.parametrize("value", [None, "high", True])
def test_a_value_that_is_not_a_number_is_an_error_with_file_line_and_field(tmp_path: Path, value: object) -> None:
    run = written(tmp_path / "run", [1.0, value], {"reward": CRS})
    assert f"{run / 'metrics.jsonl'}:2: field 'score' is not a float" in refused(run)


def test_values_that_are_not_finite_are_dropped_and_reported(tmp_path: Path) -> None:
    run = written(tmp_path / "run", [1.0, float("nan")], {"reward": CRS})
    assert (records(run)[0]["steps"], records(run)[0]["score"]) == (2, 1.0)
    assert "Dropped from run ppo, because they are not finite: values of score." in report(run).output


def test_a_run_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    run = written(tmp_path / "run", [1.0], {"reward": CRS})
    assert f"{run} is given twice" in refused(run, f"{tmp_path}/./run")


@pytest.mark.parametrize("count", [2, 6, 7, 11, 20])
def test_every_run_has_a_color_of_its_own_and_many_names_stand_beside_the_axes(count: int) -> None:
    figure = plots.draw_metrics({f"run {i}": [(0.0, 0.0), (1.0, float(i))] for i in range(count)}, "score")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    lines = [line for line in axes.lines if str(line.get_label()).startswith("run")]
    assert len({str(line.get_color()) for line in lines}) == len(lines) == count
    beside = count > 6
    assert (len(figure.legends), axes.get_legend() is None) == (int(beside), beside)
    if beside:
        legend, frame = figure.legends[0].get_window_extent(), figure.bbox
        assert legend.x0 >= axes.bbox.x1
        assert (legend.y0 >= 0, legend.x1 <= frame.x1) == (True, True)
        assert axes.bbox.width > frame.width / 2


def test_a_run_with_one_step_is_seen() -> None:
    figure = plots.draw_metrics({"run": [(0.0, 1.0)]}, "score")
    assert figure.axes[0].lines[-1].get_marker() == "o"
