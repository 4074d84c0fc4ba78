"""Parquet in and out, the side file of errors, and runs that are killed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from assay_client import bulk, cli
from assay_client._parquet import format_duration, read_parquet
from assay_client.errors import InvalidInput, ServerError
from tests.client.test_client_bulk import jsonl, rows_of, run
from tests.client.test_client_slow import assay, has_rows, slow, wait_for

if TYPE_CHECKING:
    from tests.client.conftest import Loopback

__all__ = ["assay", "slow"]

ROWS: list[dict[str, Any]] = [
    {"prompt": "p", "completion": "1.5", "finish_reason": "length", "id": "a", "label": 3},
    {"prompt": "p", "completion": "bad", "id": "b"},
    {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "-2"}], "label": 4},
    {"prompt": [{"role": "user", "content": "p"}], "completion": "7"},
]


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> str:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return str(path)


def wide(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in which a prompt is always a list, as a column of Parquet has one type."""
    prompts = [row["prompt"] for row in rows if "prompt" in row]
    assert prompts
    chats = [{**row, "prompt": [{"role": "user", "content": "p"}]} if "prompt" in row else row for row in rows]
    return [{key: row.get(key) for key in dict.fromkeys(key for one in rows for key in one)} for row in chats]


@pytest.mark.parametrize("row_group_size", [1, 3, 1000])
def test_parquet_gives_the_rows_of_the_same_json(
    honest: httpx.MockTransport, tmp_path: Path, row_group_size: int
) -> None:
    """With every key in every row, null where a row lacks it; messages are lists of structs."""
    table = write(tmp_path / "in.parquet", wide(ROWS), row_group_size=row_group_size)
    run(honest, bulk.score_file, jsonl(tmp_path / "in.jsonl", ROWS), tmp_path / "a.jsonl")
    tally = run(honest, bulk.score_file, table, tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert (tally.scored, tally.failed, tally.extra) == (3, 1, ("label",))


def test_what_a_null_field_of_a_message_struct_is(wire: Any, tmp_path: Path) -> None:
    """A list of structs has every field in every message. A null is sent as null, which the service ignores."""
    sent: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return wire.answer(request, json=wire.honest(request.url.path, sent[-1]))  # type: ignore[no-any-return]

    messages = [{"role": "user", "content": "p", "name": "eve"}, {"role": "assistant", "content": "1", "name": None}]
    source = write(tmp_path / "in.parquet", [{"messages": messages, "finish_reason": None}])
    run(httpx.MockTransport(handler), bulk.score_file, source, tmp_path / "out")
    assert sent[0]["items"] == [{"messages": messages}]


def test_lists_of_completions_are_ranked(honest: httpx.MockTransport, tmp_path: Path) -> None:
    texts = write(tmp_path / "texts.parquet", [{"prompt": "p", "completions": ["1", "3", "2"], "id": "x"}])
    run(honest, bulk.rank_file, texts, tmp_path / "texts.jsonl")
    given = [{"completion": "1", "finish_reason": "length"}, {"completion": "3", "finish_reason": None}]
    structs = write(tmp_path / "structs.parquet", [{"prompt": "p", "completions": given}])
    run(honest, bulk.rank_file, structs, tmp_path / "structs.jsonl")
    orders = [
        [one["index"] for one in rows_of(tmp_path / name)[0]["results"]] for name in ("texts.jsonl", "structs.jsonl")
    ]
    assert orders == [[1, 2, 0], [1, 0]]


def test_values_that_json_lacks_are_copied_in_a_form_that_it_has(honest: httpx.MockTransport, tmp_path: Path) -> None:
    row = {
        "prompt": "p",
        "completion": "1",
        "when": datetime(2026, 11, 28, 12, tzinfo=UTC),
        "day": date(2026, 11, 28),
        "price": Decimal("0.10"),
        "raw": b"\x00\xff",
        "long": timedelta(days=1, hours=2, minutes=3, seconds=4, milliseconds=500),
        "nan": float("nan"),
        "deep": {"list": [1.5, float("inf")], "none": None},
    }
    run(honest, bulk.score_file, write(tmp_path / "in.parquet", [row]), tmp_path / "out.jsonl")
    assert rows_of(tmp_path / "out.jsonl")[0]["extra"] == {
        "when": "2026-11-28T12:00:00+00:00",
        "day": "2026-11-28",
        "price": "0.10",
        "raw": "AP8=",
        "long": "P1DT2H3M4.5S",
        "nan": None,
        "deep": {"list": [1.5, None], "none": None},
    }


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(0), "PT0S"),
        (timedelta(days=400), "P400D"),
        (timedelta(seconds=59), "PT59S"),
        (timedelta(minutes=60), "PT1H"),
        (timedelta(microseconds=1), "PT0.000001S"),
        (timedelta(microseconds=-1), "-PT0.000001S"),
        (timedelta(days=-1, seconds=60), "-PT23H59M"),
        (timedelta(days=2, seconds=0.25), "P2DT0.25S"),
        (pyarrow.scalar(1_500_000_001, pyarrow.duration("ns")).as_py(), "PT1.500000001S"),
    ],
)
def test_a_duration_is_written_as_in_iso_8601(duration: timedelta, text: str) -> None:
    assert format_duration(duration) == text
    if not duration.microseconds:  # a second implementation, which knows no years
        assert msgspec.json.decode(f'"{text}"', type=timedelta) == duration


def test_nanoseconds_without_pandas_are_an_error_that_says_what_to_install(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.table({"d": pyarrow.array([1], pyarrow.duration("ns"))}), source)
    code = (
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'pandas': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Without())\n"
        "from assay_client._parquet import read_parquet\n"
        "from assay_client.errors import InvalidInput\n"
        f"try: list(read_parquet({str(source)!r}))\n"
        "except InvalidInput as error: print(error)"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.startswith(f"{source}: cannot be read as Parquet: ")
    assert "nstall pandas" in printed


CHAT = [{"role": "user", "content": "p"}, {"role": "assistant", "content": b"1"}]


@pytest.mark.parametrize(
    ("what", "row", "says"),
    [
        ("score", {"prompt": b"p", "completion": "1"}, "`prompt` holds a value of type bytes, and must be text"),
        ("score", {"prompt": "p", "completion": b"1"}, "`completion` holds a value of type bytes"),
        ("score", {"prompt": "p", "completion": date(2026, 1, 1)}, "`completion` holds a value of type date"),
        ("score", {"prompt": Decimal("1.5"), "completion": "1"}, "`prompt` holds a value of type Decimal"),
        ("score", {"prompt": "p", "completion": "1", "finish_reason": b"stop"}, "`finish_reason` holds a value"),
        ("score", {"messages": CHAT}, "`messages` holds a value of type bytes"),
        ("rank", {"prompt": "p", "completions": [b"1", b"2"]}, "`completions` holds a value of type bytes"),
        ("rank", {"prompt": b"p", "completions": ["1", "2"]}, "`prompt` holds a value of type bytes"),
        ("diff", {"prompt": "p", "completion": b"1"}, "`completion` holds a value of type bytes"),
        ("diff", {"prompt": "p", "chosen": b"2", "rejected": "1"}, "`chosen` holds a value of type bytes"),
        ("diff", {"prompt": "p", "chosen": "2", "rejected": b"1"}, "`rejected` holds a value of type bytes"),
        ("diff", {"prompt": b"p", "chosen": "2", "rejected": "1"}, "`prompt` holds a value of type bytes"),
    ],
)
def test_a_value_that_is_not_text_is_never_scored_as_text(
    slow: Callable[[float], "Loopback"], tmp_path: Path, what: str, row: dict[str, Any], says: str
) -> None:
    server = slow(0.0)
    source = write(tmp_path / "in.parquet", [row])
    words = [what, server.url, server.url, source] if what == "diff" else [what, source, "--url", server.url]
    done = CliRunner().invoke(cli.app, words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"in.parquet[0]: {says}" in done.stderr
    assert [asked.path for asked in server.asked if asked.path == "/v1/score"] == []


@pytest.mark.parametrize(
    ("ids", "column", "written"),
    [
        ([7, 2**40, None], "int64", [7, 2**40, None]),
        (["7", "a", None], "string", ["7", "a", None]),
        ([7, "7", None], "string", ["7", '"7"', None]),
        ([2**63, 1, 2], "string", [str(2**63), "1", "2"]),
        ([True, {"a": [1]}, "ä"], "string", ["true", '{"a": [1]}', '"ä"']),
        ([None, None, None], "string", [None, None, None]),
    ],
)
def test_an_id_of_any_type_stays_the_id_of_its_row(
    honest: httpx.MockTransport, tmp_path: Path, ids: list[Any], column: str, written: list[Any]
) -> None:
    source = jsonl(tmp_path / "in", [{"prompt": "p", "completion": "1", "id": id} for id in ids])
    tally = run(honest, bulk.score_file, source, tmp_path / "out.jsonl")
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row.get("id") for row in rows] == ids
    assert [type(row.get("id")) for row in rows] == [type(id) for id in ids]
    assert tally.extra == ()
    run(honest, bulk.score_file, source, tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert (str(table.schema.field("id").type), table.column("id").to_pylist()) == (column, written)
    groups = jsonl(tmp_path / "groups", [{"prompt": "p", "completions": ["1"], "id": id} for id in ids])
    run(honest, bulk.rank_file, groups, tmp_path / "ranked")
    run(honest, bulk.render_file, source, tmp_path / "rendered")
    for name in ("ranked", "rendered"):
        assert [row.get("id") for row in rows_of(tmp_path / name)] == ids


def test_ids_of_a_parquet_file_come_back_as_they_were(honest: httpx.MockTransport, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", [{"prompt": "p", "completion": "1", "id": n} for n in (30, 40)])
    run(honest, bulk.score_file, source, tmp_path / "out.parquet")
    assert parquet.read_table(tmp_path / "out.parquet").column("id").to_pylist() == [30, 40]


def test_scores_are_written_as_parquet(honest: httpx.MockTransport, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", ROWS)
    run(honest, bulk.score_file, source, tmp_path / "out.parquet")
    run(honest, bulk.score_file, source, tmp_path / "out.jsonl")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["index", "id", "score", "signals", "error", "extra"]
    assert [str(table.schema.field(name).type) for name in ("index", "id", "score", "extra")] == [
        "int64", "string", "double", "string",
    ]  # fmt: skip
    assert table.column("score").to_pylist() == [1.5, None, -2.0, 7.0]
    assert table.column("id").to_pylist() == ["a", "b", None, None]
    assert [one and one["code"] for one in table.column("error").to_pylist()] == [None, "special_token", None, None]
    assert table.column("extra").to_pylist() == ['{"label": 3}', None, '{"label": 4}', None]
    for row, written in zip(rows_of(tmp_path / "out.jsonl"), table.to_pylist(), strict=True):
        signals = row.get("signals") and {name: {"prob": None, **value} for name, value in row["signals"].items()}
        assert written["signals"] == signals
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl", "out.parquet"]


@pytest.mark.parametrize(("rows", "columns"), [([], 5), ([{"prompt": "p", "completion": "bad"}], 5)])
def test_a_file_without_a_score_has_no_signals(
    honest: httpx.MockTransport, tmp_path: Path, rows: list[Any], columns: int
) -> None:
    run(honest, bulk.score_file, jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert (table.num_rows, table.num_columns) == (len(rows), columns)


def test_a_file_that_is_not_parquet_is_named(honest: httpx.MockTransport, tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    source.write_text('{"prompt": "p", "completion": "1"}\n')
    with pytest.raises(InvalidInput, match=r"in\.parquet: cannot be read as Parquet: "):
        run(honest, bulk.score_file, source, tmp_path / "out.jsonl")
    write(source, [{"prompt": "p", "completion": "1"}, {"prompt": "p", "completion": None}])
    with pytest.raises(InvalidInput, match=r"in\.parquet\[1\]: an item has `prompt` with `completion`"):
        run(honest, bulk.score_file, source, tmp_path / "out.jsonl")
    assert os.listdir(tmp_path) == ["in.parquet"]


def test_only_scores_are_written_as_parquet(honest: httpx.MockTransport, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completions": ["1"]}])
    with pytest.raises(InvalidInput, match="only `score` writes Parquet"):
        run(honest, bulk.rank_file, source, tmp_path / "out.parquet")


@pytest.mark.parametrize("parquet_is", ["input", "output"])
def test_without_pyarrow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parquet_is: str
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError("sent")

    row = {"prompt": "p", "completion": "1"}
    paths = {
        "input": (write(tmp_path / "in.parquet", [row]), "out.jsonl"),
        "output": (jsonl(tmp_path / "in.jsonl", [row]), "out.parquet"),
    }
    source, target = paths[parquet_is]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInput, match=r"\.parquet: Parquet files need pyarrow: pip install pyarrow"):
        run(httpx.MockTransport(handler), bulk.score_file, source, tmp_path / target)


def test_pyarrow_is_not_imported_for_other_files(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "1"}])
    code = (
        "import sys; from assay_client import bulk, diff, _rows; from functools import partial\n"
        f"found = _rows.survey({source!r}, partial(_rows.ItemRow.of, fields=_rows.Fields()))\n"
        "print(found.rows, 'pyarrow' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "1 False\n"
    )


def test_rows_of_parquet_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", [{"n": n} for n in range(5000)], row_group_size=100)
    rows = read_parquet(source)
    assert [next(rows) for _ in range(2)] == [("[0]", {"n": 0}), ("[1]", {"n": 1})]
    rows.close()


def test_failed_rows_are_listed_in_a_file_of_their_own(honest: httpx.MockTransport, tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": "p", "completion": "bad", "id": "x"}, {"prompt": "p", "completion": "1"}]
    rows += [{"prompt": "p", "completion": "bad", "id": 17}, {"prompt": "p", "completion": "bad"}]
    source = jsonl(tmp_path / "in.jsonl", rows)
    tally = run(honest, bulk.score_file, source, tmp_path / "out.jsonl", errors=str(tmp_path / "errors.jsonl"))
    fault = {"code": "special_token", "message": "holds <s>", "param": "completion", "retryable": False}
    assert rows_of(tmp_path / "errors.jsonl") == [
        {"index": 0, "id": "x", **fault},
        {"index": 2, "id": 17, **fault},
        {"index": 3, **fault},
    ]
    assert [row["index"] for row in rows_of(tmp_path / "out.jsonl")] == [0, 1, 2, 3]  # nothing is taken from the output
    assert (tally.scored, tally.failed) == (1, 3)
    run(
        honest,
        bulk.score_file,
        jsonl(tmp_path / "fine.jsonl", rows[1:2]),
        tmp_path / "fine",
        errors=str(tmp_path / "no"),
    )
    assert (tmp_path / "no").read_text() == ""


@pytest.mark.parametrize("place", ["file", "device", "-"])
def test_errors_go_to_a_file_or_a_device_and_not_to_stdout(slow: Any, tmp_path: Path, place: str) -> None:
    server: Loopback = slow(0.0)
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "bad"}])
    errors = {"file": str(tmp_path / "e"), "device": "/dev/null", "-": "-"}[place]
    words = ["score", source, "-o", str(tmp_path / "out"), "--errors", errors, "--url", server.url]
    done = CliRunner().invoke(cli.app, words)
    made = {"in.jsonl", "out"} | ({"e"} if place == "file" else set())
    if place == "-":
        assert (done.exit_code, done.stdout) == (2, "")
        assert "--errors: - is stdout, which is for scores; name a file" in done.stderr
        made.remove("out")
    else:
        assert done.exit_code == 1
    assert set(os.listdir(tmp_path)) == made


def test_a_run_that_stops_leaves_no_file_of_errors(honest: httpx.MockTransport, wire: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "bad"}] * 40
    source = jsonl(tmp_path / "in.jsonl", rows)
    asked = 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if asked > 3:
            refusal = wire.refusal("model_not_found", retryable=False)
            return wire.answer(request, 404, json=refusal)  # type: ignore[no-any-return]
        return wire.answer(request, json=wire.honest(request.url.path, json.loads(request.content)))  # type: ignore[no-any-return]

    paths, errors = (source, tmp_path / "out.jsonl"), str(tmp_path / "errors")
    with pytest.raises(ServerError):
        run(httpx.MockTransport(handler), bulk.score_file, *paths, errors=errors)
    with pytest.raises(InvalidInput, match="rows of another run"):
        run(honest, bulk.score_file, *paths, errors=errors, model="other")
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl.part", "out.jsonl.part.json"]
    run(honest, bulk.score_file, *paths, errors=errors)
    assert sorted(os.listdir(tmp_path)) == ["errors", "in.jsonl", "out.jsonl"]
    assert [row["index"] for row in rows_of(tmp_path / "errors")] == [*range(40)]


def test_a_kill_between_both_files_loses_neither(
    honest: httpx.MockTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "bad"}] * 3)
    rename = Path.replace

    class Killed(BaseException):
        pass

    def replace(self: Path, other: Path) -> Path:
        if Path(other).name == "out.jsonl":
            raise Killed
        return rename(self, other)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
            run(honest, bulk.score_file, source, tmp_path / "out.jsonl", errors=str(tmp_path / "errors"))

    def refuse(request: httpx.Request) -> httpx.Response:
        raise AssertionError("sent")

    run(
        httpx.MockTransport(refuse),
        bulk.score_file,
        source,
        tmp_path / "out.jsonl",
        errors=str(tmp_path / "errors"),
    )
    assert [len(rows_of(tmp_path / name)) for name in ("errors", "out.jsonl")] == [3, 3]


def test_the_command_writes_parquet_and_errors_and_says_so_in_its_status(slow: Any, tmp_path: Path) -> None:
    server: Loopback = slow(0.0)
    source = write(tmp_path / "in.parquet", [{"prompt": "p", "completion": "1"}, {"prompt": "p", "completion": "bad"}])
    words = ["score", source, "-o", str(tmp_path / "out.parquet"), "--errors", str(tmp_path / "errors.jsonl")]
    done = CliRunner().invoke(cli.app, [*words, "--url", server.url])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "1 scored, 1 failed, fingerprint f1\nfirst: row 1: special_token: holds <s>\n"
    assert parquet.read_table(tmp_path / "out.parquet").column("score").to_pylist() == [1.0, None]
    assert rows_of(tmp_path / "errors.jsonl")[0]["index"] == 1


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_run_that_was_killed_twice_gives_the_file_of_one_that_was_not(
    slow: Callable[[float], "Loopback"], assay: Any, tmp_path: Path, ending: str
) -> None:
    rows = [{"prompt": "long " * 500, "completion": "bad" if n % 9 == 4 else str(n), "label": n} for n in range(60)]
    source = write(tmp_path / "in.parquet", rows) if ending == "parquet" else jsonl(tmp_path / "in.jsonl", rows)
    fast, target, part = slow(0.0), tmp_path / f"out.{ending}", tmp_path / f"out.{ending}.part"
    words = ["score", source, "--concurrency", "2", "-o"]
    assert assay(*words, f"whole.{ending}", "--errors", "whole.errors", "--url", fast.url).wait(60) == 1
    server = slow(0.02)
    for _ in range(2):
        going = assay(*words, target.name, "--errors", "out.errors", "--url", server.url)
        wait_for(partial(has_rows, part, 10 + len(part.read_text().splitlines()) if part.exists() else 10))
        going.kill()  # SIGKILL
        going.wait()
        assert not target.exists()
        assert not [name for name in os.listdir(tmp_path) if name.startswith("out.errors")]
    assert assay(*words, target.name, "--errors", "out.errors", "--url", server.url).wait(60) == 1
    assert target.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert (tmp_path / "out.errors").read_bytes() == (tmp_path / "whole.errors").read_bytes()
    if ending == "parquet":
        assert parquet.read_table(target).equals(parquet.read_table(tmp_path / "whole.parquet"))
        assert parquet.read_table(target).num_rows == 60
    left = {"whole.errors", "out.errors", f"whole.{ending}", f"out.{ending}", f"in.{ending}"}
    assert set(os.listdir(tmp_path)) == left


def test_a_kill_while_the_parquet_file_is_written_leaves_all_rows(
    honest: httpx.MockTransport, wire: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the process had ended between the last row and the new name: nothing is sent again."""
    source, target = jsonl(tmp_path / "in.jsonl", ROWS), tmp_path / "out.parquet"

    class Killed(BaseException):
        pass

    rename = Path.replace

    def replace(self: Path, other: Path) -> Path:
        if self.name == "out.parquet.new":
            raise Killed
        return rename(self, other)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
            run(honest, bulk.score_file, source, target)
    assert not target.exists()
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return wire.answer(request, json=wire.honest(request.url.path, json.loads(request.content)))  # type: ignore[no-any-return]

    tally = run(httpx.MockTransport(handler), bulk.score_file, source, target)
    assert (asked, tally.scored, tally.failed) == ([], 3, 1)
    assert parquet.read_table(target).column("score").to_pylist() == [1.5, None, -2.0, 7.0]
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.parquet"]
