"""AlpacaEval's files as they are published: rows without a verdict, models without a name, fields that are groups."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay_training.evaluation import grouping
from assay_training.records.rows import Row
from tests.training.test_judgments import evaluate, record, records, row, write


def test_rows_without_a_verdict_are_dropped_as_alpaca_eval_does(tmp_path: Path) -> None:
    """The numbers are those of `alpaca_eval.metrics.get_winrate` of alpaca_eval 0.6.6 on the same preferences."""
    preferences = [2, 2, 1, 1.5, 0, None, float("nan"), 1.75, 1.25]
    path = write(tmp_path / "annotations.json", [row(value, i) for i, value in enumerate(preferences)])
    (found,) = [r for r in records("winrate", path) if r["row"] == "new"]
    assert 100 * found["win_rate"] == pytest.approx(57.14285714285714, abs=1e-12)
    assert 100 * found["se"] == pytest.approx(14.136121532187996, abs=1e-12)
    assert (found["n"], found["wins"], found["losses"], found["draws"]) == (7, 3, 2, 2)
    assert found["no_verdict"] == 2
    code, output = evaluate("winrate", path)
    assert (code, "annotations.json: no verdict: 2 dropped" in output) == (0, True)


MISSING = [None, float("nan"), "", "  ", "nan", "NaN", "None", "null", "<NA>"]


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.jsonl.gz"])
def test_every_way_of_writing_no_verdict(missing: object, name: str, tmp_path: Path) -> None:
    rows = [row(2), row(missing, 1), row(1, 2)]
    content = json.dumps(rows) if name == "x.json" else "".join(json.dumps(one) + "\n" for one in rows)
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found = record(records("winrate", tmp_path / name), "new", "base")
    assert (found["win_rate"], found["n"], found["no_verdict"]) == (0.5, 2, 1)


def test_a_row_that_lacks_the_field_has_no_verdict(tmp_path: Path) -> None:
    bare = {key: value for key, value in row(2, 1).items() if key != "preference"}
    found = record(records("winrate", write(tmp_path / "x.json", [row(2), bare])), "new", "base")
    assert (found["win_rate"], found["n"], found["no_verdict"]) == (1, 1, 1)


@pytest.mark.parametrize("lost", [{"output_2": None}, {"output_1": float("nan")}])
def test_a_row_without_a_verdict_may_lack_an_output(lost: dict[str, Any], tmp_path: Path) -> None:
    """A model said nothing, so the judge was not asked; with a verdict the row is broken."""
    path = write(tmp_path / "x.json", [row(2), row(None, 1) | lost])
    found = record(records("winrate", path), "new", "base")
    assert (found["win_rate"], found["n"], found["no_verdict"]) == (1, 1, 1)
    write(tmp_path / "x.json", [row(2), row(1, 1) | lost])
    code, output = evaluate("winrate", path)
    assert (code, f"row 2: field '{next(iter(lost))}' is not a str" in output) == (2, True)


def test_a_file_without_any_verdict_is_an_error(tmp_path: Path) -> None:
    """Also where another file has verdicts: it would count as judged, and is not."""
    good = write(tmp_path / "good.json", [row(2)])
    bad = write(tmp_path / "bad.json", [row(None), row("nan", 1)])
    for command in (("winrate", good, bad), ("agreement", f"alpaca_eval:{bad}")):
        code, output = evaluate(*command)
        assert (code, "bad.json: none of its 2 rows has a verdict: 'preference' is missing, null or" in output) == (
            2,
            True,
        ), output


def test_a_model_may_be_named_by_a_number(tmp_path: Path) -> None:
    """And 375.0, which pandas makes of 375 where a row has none, is the same model."""
    rows = [row(2, 0, generator_2=375), row(1, 1, generator_2=375.0), row(2, 2, generator_2="375")]
    found = record(records("winrate", write(tmp_path / "x.json", rows)), "375", "base")
    assert (found["n"], found["wins"]) == (3, 2)
    bare = {"instruction": "q", "output_1": "a", "output_2": "b", "generator": 375, "preference": 2}
    found = record(records("winrate", write(tmp_path / "base_vs_375.json", [bare])), "375", "base")
    assert found["win_rate"] == 1


@pytest.mark.parametrize(
    ("names", "models"),
    [
        ({"generator": "new"}, ("new", "reference")),
        ({"generator": "new", "generator_1": None}, ("new", "reference")),
        ({"generator": 375, "generator_2": float("nan")}, ("375", "reference")),
        ({"generator_2": "new"}, ("new", "reference")),
        ({"generator_1": "base"}, ("Current model", "base")),
        ({}, ("Current model", "reference")),
    ],
)
def test_a_side_without_a_name_is_called_as_alpaca_eval_calls_it(
    names: dict[str, Any], models: tuple[str, str], tmp_path: Path
) -> None:
    bare = {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 2} | names
    assert record(records("winrate", write(tmp_path / "annotations.json", [bare])), *models)["win_rate"] == 1


def test_names_may_differ_between_rows(tmp_path: Path) -> None:
    rows = [
        row(2),
        row(1, 1, generator_2="other"),
        row(2, 2, generator_1=None),
        row(2, 3, generator_2=None, generator=7),
    ]
    found = records("winrate", write(tmp_path / "x.json", rows))
    assert {(r["row"], r["column"]): r["win_rate"] for r in found if r["row"] in {"new", "other", "7"}} == {
        ("new", "base"): 1,
        ("other", "base"): 0,
        ("new", "reference"): 1,
        ("7", "base"): 1,
    }


def test_an_assumed_name_may_not_stand_for_models_of_two_files(tmp_path: Path) -> None:
    bare = {"instruction": "q", "output_1": "a", "output_2": "b", "generator": "new", "preference": 2}
    files = [write(tmp_path / f"{name}.json", [bare]) for name in ("one", "two")]
    code, output = evaluate("winrate", *files)
    assert code == 2, output
    assert "two.json: row 1: this file and " in output
    assert "both compare 'new' with 'reference', and one of these names is assumed" in output
    assert record(records("winrate", *files, "--reference", "gpt4"), "new", "gpt4")["n"] == 2
    other = write(tmp_path / "two.json", [bare | {"generator": "newer"}])
    assert {r["n"] for r in records("winrate", files[0], other)} == {1}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {},
            "field 'generator_2' is missing, and the file's name A_vs_B does not show which of its two models that is",
        ),
        (
            {"generator_1": "c"},
            "field 'generator_2' is missing, and the file's name does not have the form A_vs_B with 'c' on",
        ),
        (
            {"generator": "c"},
            "'generator_1' is missing, and the file's name does not have the form A_vs_B with 'c' on exactly one",
        ),
    ],
)
def test_a_files_name_that_does_not_show_which_model_is_which_is_an_error(
    names: dict[str, Any], message: str, tmp_path: Path
) -> None:
    bare = {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 2} | names
    code, output = evaluate("winrate", write(tmp_path / "a_vs_b.json", [bare]))
    assert (code, message in output) == (2, True), output


def test_outputs_of_one_model_are_an_error(tmp_path: Path) -> None:
    """`model_outputs.json` of AlpacaEval, before a judge has seen it."""
    path = write(tmp_path / "model_outputs.json", [{"instruction": "q", "output": "a", "generator": "new"}])
    for command in (("winrate", path), ("task", path, "--out", tmp_path / "t.json", "--keys", tmp_path / "k.json")):
        code, output = evaluate(*command)
        assert (
            code,
            "row 1: field 'output' holds the output of one model; a row of AlpacaEval needs those of two" in output,
        ) == (
            2,
            True,
        ), output


def annotations() -> list[dict[str, Any]]:
    """Rows with the fields that alpaca_eval 0.6.6 writes."""
    fields = {"annotator": "weighted_alpaca_eval_gpt4_turbo", "time_per_example": 0.4, "price_per_example": 0.01}
    texts = [f"Answer {i} is better: it says more.\nm" for i in range(4)]
    return [
        row(1 + i % 2, i, dataset="ab"[i // 2], category="c", raw_completion=text, date=f"2026-11-0{i + 1}") | fields
        for i, text in enumerate(texts)
    ]


def counts(*arguments: Any) -> dict[str | None, tuple[int, float]]:
    return {r["group"]: (r["n"], r["win_rate"]) for r in records("winrate", *arguments) if r["row"] == "new"}


def test_fields_of_the_rows_are_groups(tmp_path: Path) -> None:
    path = write(tmp_path / "annotations.json", annotations())
    assert counts(path, "--group-by", "dataset") == {None: (4, 0.5), "a": (2, 0.5), "b": (2, 0.5)}
    assert counts(path, "--group-by", "dataset", "--group-by", "preference") == {
        None: (4, 0.5), "a": (2, 0.5), "b": (2, 0.5), "1": (2, 0.0), "2": (2, 1.0),
        "a / 1": (1, 0.0), "a / 2": (1, 1.0), "b / 1": (1, 0.0), "b / 2": (1, 1.0),
    }  # fmt: skip


def test_a_row_without_the_field_is_in_a_group_of_its_own(tmp_path: Path) -> None:
    """So that the groups' counts add up to all."""
    rows = [one | {"dataset": value} for one, value in zip(annotations(), ["a", None, "", "a"], strict=True)]
    path = write(tmp_path / "x.json", rows)
    assert counts(path, "--group-by", "dataset") == {None: (4, 0.5), "a": (2, 0.5), "no dataset": (2, 0.5)}


def test_fields_inside_objects_are_groups(tmp_path: Path) -> None:
    rows = [one | {"meta": {"turn": i % 2}} for i, one in enumerate(annotations())]
    path = write(tmp_path / "x.json", rows)
    assert counts(path, "--group-by", "meta.turn") == {None: (4, 0.5), "0": (2, 0), "1": (2, 1)}


def test_free_texts_of_a_groups_file_are_not_groups(tmp_path: Path) -> None:
    """`annotations.json` itself as --groups: neither what the judge wrote nor what it is called is a group."""
    path = write(tmp_path / "annotations.json", annotations())
    assert set(counts(path, "--groups", path)) == {None, "a", "b", "c", "a / c", "b / c"}
    lists = write(tmp_path / "g.json", [one | {"raw": ["x"], "why": "y" * 81} for one in annotations()])
    assert set(counts(path, "--groups", lists)) == {None, "a", "b", "c", "a / c", "b / c"}
    assert set(counts(path, "--groups", lists, "--group-by", "dataset")) == {None, "a", "b"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--group-by", "data_set"),
            "row 1: no row has a field 'data_set' to group by; fields: instruction, output_1,",
        ),
        (("--group-by", "extra"), "row 2: field 'extra' cannot be a group; a group is a number, or one line of"),
        (("--group-by", "raw_completion"), "row 1: field 'raw_completion' cannot be a group; a group is a number"),
        (("--groups", "g.json", "--group-by", "dataset"), "one object of instructions, without fields to group by"),
        (
            ("--groups", "h.json"),
            "a group is one line of at most 80 characters, and these fields hold something else in some rows: why",
        ),
    ],
)
def test_fields_that_cannot_be_groups_are_errors(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = annotations()
    rows[1]["extra"] = ["x"]
    write(Path("g.json"), {"question 0": "a"})
    write(Path("h.json"), [{"instruction": "question 0", "why": "two\nlines"}])
    code, output = evaluate("winrate", write(Path("x.json"), rows), *arguments)
    assert (code, message in output) == (2, True), output


@given(st.lists(st.dictionaries(st.sampled_from("ab"), st.sampled_from(["x", "y", "z"])), min_size=1, max_size=6))
def test_two_fields_never_share_a_name_of_a_group(ways: list[dict[str, str]]) -> None:
    """A name stands for one field and one word, in every row."""
    meant: dict[str, set[tuple[str, str]]] = {}
    for way, named in zip(ways, grouping.name_groups(ways), strict=True):
        for pair, name in zip(way.items(), named, strict=False):
            meant.setdefault(name, set()).add(pair)
    assert all(len(pairs) == 1 for pairs in meant.values())


def test_a_field_with_dots_in_its_name_is_found_first() -> None:
    assert grouping.read_group(Row("x:1", "x", {"a.b": "whole", "a": {"b": "nested"}}), "a.b") == "whole"
    assert grouping.read_group(Row("x:1", "x", {"a": {"b": True}}), "a.b") == "True"
