"""How far the logits of two kinds of numbers are apart: the statistics, the command, and where the result is shown."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from scipy import stats
from typer.testing import CliRunner

from assay_service.api.app import create_app
from assay_service.cli import app
from assay_service.errors import StartError
from assay_service.fidelity import FILE_NAME, Fidelity, Group, Record, measure, read_fidelity, write_fidelity
from assay_service.sample_scores import read_prompts
from assay_service.settings import parse
from tests import checkpoints

CLAIMS = {"score_position": "last_token", "eos": "template", "unfinished": "score", "max_length": 128}


def test_statistics_of_hand_made_logits() -> None:
    groups = [Group((1.0, 2.0, 3.0), (1.0, 3.5, 3.0)), Group((0.0, -2.0), (0.5, -2.0)), Group((2.0,), (2.0,))]
    found = measure(groups, "float32")
    reference, compared = [1, 2, 3, 0, -2, 2], [1, 3.5, 3, 0.5, -2, 2]
    unit = math.sqrt(sum((x - 1) ** 2 for x in reference) / 6)  # their mean is 1
    assert found.mean_difference == pytest.approx(2.0 / 6 / unit)
    assert found.largest_difference == pytest.approx(1.5 / unit)
    assert found.spearman == pytest.approx(stats.spearmanr(reference, compared).statistic)
    assert (found.items, found.pairs, found.order_agreement) == (6, 4, 0.75)
    assert (found.prompts, found.changed_picks) == (2, 1)


def test_items_with_one_logit_have_no_unit() -> None:
    with pytest.raises(StartError, match="all items have the same logit"):
        measure([Group((1.0, 1.0), (1.0, 2.0))], "float32")


def test_records_of_other_weights_and_numbers_are_kept(tmp_path: Path) -> None:
    made = [measure([Group((0.0, 1.0), (0.0, shift))], "float32") for shift in (1.0, 1.5, 1.25)]
    for weights, compute, fidelity in (("a", "int8", made[0]), ("b", "int8", made[1]), ("a", "int8", made[2])):
        write_fidelity(tmp_path, Record(weights=weights * 64, compute=compute, fidelity=fidelity))
    assert read_fidelity(tmp_path, "a" * 64, "int8") == made[2]
    assert read_fidelity(tmp_path, "b" * 64, "int8") == made[1]
    assert read_fidelity(tmp_path, "a" * 64, "bfloat16") is None
    (tmp_path / FILE_NAME).write_text('{"records": [{"weights": 3}]}')
    with pytest.raises(StartError, match=r"assay_fidelity.json: records\[0\].weights"):
        read_fidelity(tmp_path, "a" * 64, "int8")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3", "is not an object"),
        ('{"prompt": "a"}', "chosen"),
        ('{"prompt": "a", "completion": 3}', "3 is not a text"),
        ("{", "Expecting"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' + line)
    with pytest.raises(StartError) as caught:
        read_prompts(tmp_path / "file.jsonl")
    assert "file.jsonl:2: " in caught.value.message
    assert message in caught.value.message


def read_info(root: Path, compute: str) -> Any:
    settings = parse({"signals": {"s": {"base": "base", "compute": compute}}, "default": "s"}, root).settings
    assert settings is not None
    with TestClient(create_app(settings)) as client:
        return client.get("/info").json()["signals"]["s"]["fidelity"]


def test_the_command_prints_what_info_shows_afterwards(tmp_path: Path) -> None:
    fast = checkpoints.decoder_tokenizer()
    reference = checkpoints.classifier("llama", fast, hidden_size=64)
    base = checkpoints.save(tmp_path / "base", reference, fast, kind="preference", **CLAIMS)
    rows: list[dict[str, Any]] = [
        {"prompt": "bread?", "chosen": "Mix flour and water.", "rejected": "No."},
        {"messages": [{"role": "user", "content": "fox?"}], "completions": ["The quick fox", "dog", "lazy"]},
        {"prompt": "dog?", "completion": "yes"},
    ]
    (tmp_path / "file.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_info(tmp_path, "int8") == "not measured"
    assert read_info(tmp_path, "float32") == "reference"
    command = ["verify", str(base), str(tmp_path / "file.jsonl"), "--compute", "int8"]
    printed = CliRunner().invoke(app, command)
    assert printed.exit_code == 0, printed.output
    assert "int8 against float32, 6 items" in printed.output
    shown = Fidelity.model_validate(read_info(tmp_path, "int8"))
    assert f"{shown.mean_difference:.4f} standard deviations" in printed.output
    assert 0 < shown.mean_difference < 0.2
    assert (shown.items, shown.pairs, shown.prompts) == (6, 4, 2)
