"""Files through the command line, against the real service with tiny models."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from assay_client import RewardClient, cli

if TYPE_CHECKING:
    from tests.compat.conftest import Serve

TEXTS = ["yes", "no", "bread bread", "wait and bake it", "<|im_end|>", "the fox"]


def invoke(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli.app, list(words))
    return done.exit_code, done.stdout, done.stderr


def test_parquet_and_json_lines_have_the_bits_of_the_client(url: str, tmp_path: Path) -> None:
    rows: list[Any] = [
        {"prompt": [{"role": "user", "content": "bake?"}], "completion": text, "finish_reason": ended, "id": f"r{n}"}
        for n, (text, ended) in enumerate(zip(TEXTS, ["stop", "length", None] * 2, strict=True))
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=2)
    words = ["score", str(tmp_path / "in.parquet"), "--model", "mix", "--url", url]
    out, errors = tmp_path / "out.parquet", tmp_path / "errors.jsonl"
    code, _, told = invoke(*words, "-o", str(out), "--errors", str(errors))
    assert (code, told.splitlines()[0].partition(", fingerprint")[0]) == (1, "5 scored, 1 failed")
    with RewardClient(url) as client:
        expected = client.score(rows, model="mix")
    table = parquet.read_table(out)
    assert table.column("score").to_pylist() == expected.scores(missing=None)
    assert table.column("id").to_pylist() == [f"r{n}" for n in range(6)]
    absolute = [row and row["abs"]["prob"] for row in table.column("signals").to_pylist()]
    assert absolute[4] is None
    assert all(0 < prob < 1 for place, prob in enumerate(absolute) if place != 4)
    (fault,) = map(json.loads, errors.read_text().splitlines())
    assert (fault["index"], fault["id"], fault["code"]) == (4, "r4", "special_tokens")
    assert invoke(*words, "-o", str(tmp_path / "out.jsonl"))[0] == 1
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line.get("score") for line in lines] == table.column("score").to_pylist()


def test_a_service_does_not_differ_from_itself_and_does_from_another_model(serve: "Serve", tmp_path: Path) -> None:
    url, other = serve().url, serve(root="openrlhf").url
    good = [text for text in TEXTS if "<" not in text]
    rows: list[Any] = [{"prompt": "hi", "completion": text} for text in good]
    rows += [{"prompt": "bake?", "completions": good}, {"prompt": "hi", "chosen": good[0], "rejected": good[1]}]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    limits = ["--max-difference", "0", "--max-changed-picks", "0", "--json"]
    code, out, _ = invoke("diff", url, other, str(source), *limits)
    same = json.loads(out)
    assert (code, same["scores"]["count"], same["scores"]["bit_equal"], same["scores"]["largest"]) == (0, 12, 12, 0.0)
    assert same["old"]["provenance"]["fingerprint"] == same["new"]["provenance"]["fingerprint"]
    code, out, told = invoke("diff", url, other, str(source), *limits, "--model", "pref", "--new-model", "abs")
    found = json.loads(out)
    assert code == 1
    assert "the largest difference is" in told
    with RewardClient(url) as client:
        pairs = [("hi", text) for text in good] + [("bake?", text) for text in good] + [("hi", t) for t in good[:2]]
        old, new = (client.score(pairs, model=name).scores() for name in ("pref", "abs"))
    assert found["scores"]["largest"] == max(abs(y - x) for x, y in zip(old, new, strict=True))
    assert found["groups"]["changed_picks"] == (
        max(range(5), key=old[5:10].__getitem__) != max(range(5), key=new[5:10].__getitem__)
    )
    assert found["pairs"]["old_accuracy"] == (old[10] > old[11])


@pytest.mark.parametrize(
    "targets",
    [["-o", "in.jsonl"], ["-o", "link.jsonl"], ["-o", "out.jsonl", "--errors", "in.jsonl"]]
    + [["-o", "out.jsonl", "--errors", name] for name in ("out.jsonl", "out.jsonl.part", "out.jsonl.part.json")],
    ids=" ".join,
)
def test_no_output_is_written_over_the_input_or_another_output(url: str, tmp_path: Path, targets: list[str]) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "hi", "completion": "yes"}\n')
    (tmp_path / "link.jsonl").symlink_to(source)
    words = [word if word.startswith("-") else str(tmp_path / word) for word in targets]
    commands = [["score", str(source)]]
    if "--errors" not in words:
        commands += [["render", str(source)], ["diff", url, url, str(source)]]
    for command in commands:
        address = [] if command[0] == "diff" else ["--url", url]
        code, _, told = invoke(*command, *words, *address)
        assert code == 2
        assert "would write over" in told
    assert source.read_text() == '{"prompt": "hi", "completion": "yes"}\n'


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_json_does_not_have_is_refused_with_its_line(url: str, tmp_path: Path, number: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a", "completion": "b"}\n' + f'{{"prompt": "a", "completion": "b", "x": {number}}}\n')
    code, out, told = invoke("score", str(source), "-o", str(tmp_path / "out.jsonl"), "--url", url)
    assert (code, out) == (2, "")
    assert "in.jsonl:2: not JSON: " in told


def test_integer_ids_go_through_the_service_as_they_were(url: str, tmp_path: Path) -> None:
    rows = [{"prompt": "hi", "completion": text, "id": 100 + n} for n, text in enumerate(TEXTS)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    out, errors = tmp_path / "out.parquet", tmp_path / "errors.jsonl"
    words = ["score", str(tmp_path / "in.parquet"), "-o", str(out), "--errors", str(errors), "--model", "mix"]
    code, _, told = invoke(*words, "--url", url)
    assert code == 1
    assert "copied to `extra`" not in told
    assert parquet.read_table(out).column("id").to_pylist() == [100, 101, 102, 103, 104, 105]
    assert json.loads(errors.read_text())["id"] == 104


def test_both_services_and_the_one_that_refuses_are_named(serve: "Serve", tmp_path: Path) -> None:
    url, other = serve().url, serve(root="openrlhf").url
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "hi", "completion": "<|im_end|>"}\n')
    code, out, _ = invoke("diff", url, other, str(source), "--model", "pref", "--json")
    assert code == 1
    assert [(row["side"], row["code"]) for row in json.loads(out)["failures"]] == [
        ("old", "special_tokens"),
        ("new", "special_tokens"),
    ]
    code, out, told = invoke("diff", url, other, str(source), "--model", "pref", "--new-model", "nobody")
    assert (code, out) == (2, "")
    assert told.startswith("assay: 404 model_not_found at model: ")
    assert told.endswith(f"; the new service, {other}\n")


USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
# Rows for which the service refuses a whole request, each with the code and field of its own error.
REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({"prompt": "hi", "completion": "a" * 300_000}, "body_too_large", None),
    ({"messages": [ASSISTANT, USER]}, "invalid_request", None),
    ({"messages": []}, "invalid_request", None),
    ({"prompt": [{**USER, "role": "x" * 65}], "completion": "yes"}, "invalid_request", "prompt[0].role"),
    ({"prompt": [{**USER, "role": ""}], "completion": "yes"}, "invalid_request", "prompt[0].role"),
]


def test_a_row_for_which_a_request_is_refused_fails_alone(url: str, tmp_path: Path) -> None:
    """One such row among millions must neither end the run nor be lost."""
    good = [{"prompt": "hi", "completion": f"{number}", "id": "x" * 300} for number in range(300)]
    rows = [*good]
    for place, (row, _, _) in zip((0, 1, 77, 150, 304), REFUSED, strict=True):
        rows.insert(place, row)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    # More rows in a request than the service accepts.
    words = ["score", str(tmp_path / "in.jsonl"), "--url", url, "--chunk-size", "500"]
    code, _, told = invoke(*words, "-o", str(out), "--errors", str(errors))
    assert (code, told.partition(",")[0]) == (1, "300 scored")
    with RewardClient(url) as client:
        expected = client.score([(row["prompt"], row["completion"]) for row in good]).scores()
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["index"] for row in written] == list(range(305))
    assert [row["score"] for row in written if "score" in row] == expected
    assert [row.get("id") for row in written] == [row.get("id") for row in rows]
    faults = {row["index"]: (row["code"], row["param"]) for row in map(json.loads, errors.read_text().splitlines())}
    assert faults == {rows.index(row): (code, param) for row, code, param in REFUSED}


def test_a_row_for_which_a_request_is_refused_is_one_failure_of_a_difference(url: str, tmp_path: Path) -> None:
    rows = [row for row, _, _ in REFUSED] + [{"prompt": "hi", "completions": ["yes", "no"]}] * 40
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, told = invoke("diff", url, url, str(tmp_path / "in.jsonl"), "--json", "--chunk-size", "500")
    found = json.loads(out)
    assert (code, told) == (1, "")
    assert (found["rows"], found["failed"], found["scores"]["count"]) == (45, 5, 80)
    assert found["old"]["failed"] == found["new"]["failed"] == 5


@pytest.mark.parametrize(
    "table",
    [
        pyarrow.Table.from_arrays([["hi"], ["yes"], ["no"]], names=["prompt", "completion", "completion"]),
        pyarrow.table(
            {
                "prompt": pyarrow.array(
                    [[{"role": "user"}]], pyarrow.list_(pyarrow.struct([("role", "string"), ("role", "string")]))
                ),
                "completion": ["yes"],
            }
        ),
    ],
    ids=["columns", "fields of a struct"],
)
def test_a_name_that_occurs_twice_in_parquet_is_refused_as_in_json(url: str, tmp_path: Path, table: Any) -> None:
    parquet.write_table(table, tmp_path / "in.parquet")
    code, out, told = invoke("score", str(tmp_path / "in.parquet"), "--url", url)
    assert (code, out) == (2, "")
    assert "occurs twice, and one of its values would be lost" in told


def test_a_refusal_that_is_not_about_a_row_ends_the_run(url: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "hi", "completion": "yes"}) + "\n")
    code, out, told = invoke("score", str(tmp_path / "in.jsonl"), "--url", url, "--weights", "pref=0")
    assert (code, out) == (2, "")
    assert "at least one weight must not be zero" in told


HUGE = {"prompt": "hi", "completions": ["yes"] * 1025}


@pytest.mark.parametrize(
    ("row", "code", "param"),
    [
        (HUGE, "too_many_items", None),
        ({"prompt": "hi", "completions": ["yes", {"completion": "no", "id": "x" * 257}]}, "invalid_request", 1),
        ({"messages": [{"role": "x" * 300, "content": "hi"}], "completions": ["yes"]}, "invalid_request", 0),
    ],
    ids=["many", "id", "messages"],
)
def test_a_ranking_that_is_refused_fails_alone(
    url: str, tmp_path: Path, row: Any, code: str, param: int | None
) -> None:
    good = {"prompt": "hi", "completions": ["yes", "no"]}
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(one) + "\n" for one in (good, {**row, "id": "q", "best": 1}, good)))
    status, _, told = invoke("rank", str(source), "-o", str(out), "--url", url, "--model", "mix")
    count = len(row["completions"])
    assert (status, told.splitlines()[0].partition(", fingerprint")[0]) == (1, f"4 scored, {count} failed")
    first, refused, last = (json.loads(line) for line in out.read_text().splitlines())
    assert [one["score"] for one in first["results"]] == [one["score"] for one in last["results"]]
    assert (refused["index"], refused["id"], refused["extra"], refused["results"]) == (1, "q", {"best": 1}, [])
    assert [one["index"] for one in refused["errors"]] == list(range(count))
    assert {one["error"]["code"] for one in refused["errors"]} == {code}
    status, shown, _ = invoke("rank", str(source), "--url", url, "--model", "mix")
    assert status == 1
    assert f"completion 0: {code}: " in shown


@pytest.mark.parametrize("words", [["--model", "none"], ["--weights", "none=1"]], ids=" ".join)
def test_what_is_wrong_for_every_ranking_ends_the_command(url: str, tmp_path: Path, words: list[str]) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "hi", "completions": ["yes", "no"]}\n')
    status, _, told = invoke("rank", str(source), "-o", str(tmp_path / "out.jsonl"), "--url", url, *words)
    assert status == 2
    assert f"at {words[0].removeprefix('--')}" in told
