"""Mean, standard deviation and distribution of a signal on sample texts: statistics, command, and what is shown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from typer.testing import CliRunner

from assay_service.api.app import create_app
from assay_service.calibrate import build_reference
from assay_service.cli import app
from assay_service.errors import StartError
from assay_service.scoring import manifest
from assay_service.scoring.hashing import hash_files
from assay_service.scoring.reference import ReferenceHistogram
from assay_service.settings import parse
from tests import checkpoints

CLAIMS = {"score_position": "last_token", "eos": "template", "unfinished": "score", "max_length": 128}
SHA = "0" * 64


def test_the_borders_are_deciles_and_every_logit_is_in_one_cell() -> None:
    logits = np.random.default_rng(0).normal(2, 3, 1000).tolist()
    reference = build_reference(logits, SHA, "f")
    deciles = np.quantile(logits, np.arange(1, 10) / 10)
    np.testing.assert_allclose(reference.edges, deciles, rtol=1e-12)
    counts, _ = np.histogram(logits, [-np.inf, *deciles, np.inf])
    assert list(reference.counts) == counts.tolist() == [100] * 10
    assert (reference.samples, reference.samples_sha256) == (1000, SHA)
    # A logit that equals a border is above it, as numpy has it.
    whole = [float(n // 10) for n in range(100)]
    reference = build_reference([*whole, *range(10)], SHA, "f")
    counts, _ = np.histogram([*whole, *range(10)], [-np.inf, *reference.edges, np.inf])
    assert list(reference.counts) == counts.tolist()


def test_too_few_and_equal_logits_are_refused_with_the_reason() -> None:
    with pytest.raises(StartError, match=r"f: has 99 completions, too few .*; give at least 100"):
        build_reference([float(n) for n in range(99)], SHA, "f")
    with pytest.raises(StartError, match=r"f: only 2 of the 200 logits differ, .* give texts that differ more"):
        build_reference([1.0, 2.0] * 100, SHA, "f")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"edges": [0.0, 0.0]}, "edges must increase"),
        ({"edges": [1.0]}, "at least 2"),
        ({"counts": [1, 2]}, "counts must have one number more"),
        ({"samples": 7}, "counts must have one number more"),
        ({"edges": [0.0, "nan"]}, "finite"),
        ({"counts": [1, -1, 3]}, "greater than or equal to 0"),
    ],
)
def test_a_distribution_that_cannot_be_one_is_refused(change: dict[str, Any], words: str) -> None:
    right: dict[str, Any] = {"edges": [0.0, 1.0], "counts": [1, 1, 1], "samples": 3, "samples_sha256": SHA}
    ReferenceHistogram.model_validate(right)
    with pytest.raises(ValidationError, match=words):
        ReferenceHistogram.model_validate(right | change)


def read_signals(root: Path, signals: dict[str, Any]) -> Any:
    settings = parse({"signals": signals, "default": next(iter(signals))}, root).settings
    assert settings is not None
    with TestClient(create_app(settings)) as client:
        items = [{"prompt": "bread?", "completion": f"{n} loaves"} for n in range(150)]
        scored = [client.post("/v1/score", json={"items": items, "model": name}).json()["data"] for name in signals]
        return client.get("/info").json()["signals"], [[row["score"] for row in rows] for rows in scored]


def test_the_command_writes_what_the_service_then_shows(tmp_path: Path) -> None:
    """The oracle is the service itself: numpy over the scores of its HTTP interface."""
    fast = checkpoints.decoder_tokenizer()
    checkpoints.save(tmp_path / "base", checkpoints.classifier("llama", fast), fast, kind="preference", **CLAIMS)
    signals = {"s": {"base": "base"}}
    before, (scores,) = read_signals(tmp_path, signals)
    assert before["s"]["reference"] is None
    rows = [{"prompt": "bread?", "completions": [f"{n} loaves", f"{n + 75} loaves"]} for n in range(75)]
    file = tmp_path / "file.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    done = CliRunner().invoke(app, ["calibrate", str(tmp_path / "base"), str(file)])
    assert done.exit_code == 0, done.output
    mean, std = np.mean(scores), np.std(scores, ddof=1)
    assert f"base: mean {mean:.4f}, standard deviation {std:.4f}, 150 completions" in done.output
    after, (again,) = read_signals(tmp_path, signals)
    assert again == scores  # nothing but the moments has changed
    assert (after["s"]["mean"], after["s"]["std"]) == (pytest.approx(mean, abs=1e-6), pytest.approx(std, rel=1e-5))
    reference = after["s"]["reference"]
    assert (reference["samples"], reference["samples_sha256"]) == (150, hash_files([file]))
    counts, _ = np.histogram(scores, [-np.inf, *reference["edges"], np.inf])
    assert reference["counts"] == counts.tolist()
    written = (tmp_path / "base" / manifest.FILE_NAME).read_text()
    assert json.loads(written) | {"reference": 0, "mean": 0, "std": 0} == {
        "kind": "preference", **CLAIMS, "token_types": "zero", "golden": [], "outputs": [],
        "reference": 0, "mean": 0, "std": 0,
    }  # fmt: skip

    assert CliRunner().invoke(app, ["calibrate", str(tmp_path / "base"), str(file)]).exit_code == 0
    assert (tmp_path / "base" / manifest.FILE_NAME).read_text() == written

    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:49]))
    few = CliRunner().invoke(app, ["calibrate", str(tmp_path / "base"), str(file)])
    assert (few.exit_code, "has 98 completions, too few" in few.output) == (2, True)
    assert (tmp_path / "base" / manifest.FILE_NAME).read_text() == written


def test_two_signals_with_one_place_in_a_manifest_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    fast = checkpoints.decoder_tokenizer()
    checkpoints.save(tmp_path / "base", checkpoints.classifier("llama", fast), fast, kind="preference", **CLAIMS)
    (tmp_path / "two.yaml").write_text("signals: {a: {base: base}, b: {base: base, max_length: 64}}\ndefault: a\n")
    (tmp_path / "file.jsonl").write_text("{}\n")
    done = CliRunner().invoke(app, ["calibrate", str(tmp_path / "two.yaml"), str(tmp_path / "file.jsonl")])
    assert done.exit_code == 2
    assert "signals.b: has the same place in" in done.output
    assert "give a configuration with one of them" in done.output
    assert not list((tmp_path / "base").glob(".assay*"))
