"""Files: one row out per row in, in order; an unfinished run leaves its rows in a part, and goes on there."""

import asyncio
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from assay_client import bulk
from assay_client._output import describe_part, open_output
from assay_client._rows import Fields
from assay_client.client import AsyncRewardClient
from assay_client.errors import FingerprintChanged, InvalidInput, ServerError

if TYPE_CHECKING:
    from tests.client.conftest import Wire


def jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbered(count: int) -> list[Any]:
    return [{"prompt": "p", "completion": str(n), "id": f"r{n}"} for n in range(count)]


def run(
    transport: httpx.AsyncBaseTransport, what: Callable[..., Any], *paths: Any, chunk_size: int = 4, **options: Any
) -> bulk.Tally:
    async def inner() -> bulk.Tally:
        async with AsyncRewardClient(
            "http://assay.test", transport=transport, chunk_size=chunk_size, max_concurrency=3, max_retries=0
        ) as client:
            tally: bulk.Tally = await what(client, *map(str, paths), **options)
            return tally

    return asyncio.run(inner())


def test_every_row_comes_out_in_order_under_its_line(honest: httpx.MockTransport, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", numbered(50))
    progress: list[tuple[int, int | None]] = []
    tally = run(
        honest,
        bulk.score_file,
        source,
        tmp_path / "out.jsonl",
        on_rows=lambda done, total: progress.append((done, total)),
    )
    out = rows_of(tmp_path / "out.jsonl")
    assert [(row["index"], row["id"], row["score"]) for row in out] == [(n, f"r{n}", float(n)) for n in range(50)]
    assert (tally.scored, tally.failed, tally.first_error, tally.fingerprint) == (50, 0, None, "f1")
    assert (progress[0], progress[-1]) == ((0, 50), (50, 50))
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def test_a_row_out_is_the_servers_row_and_what_else_the_row_held(honest: httpx.MockTransport, tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "completion": "2", "label": 1, "score": "gold", "index": 7},
        {"prompt": "p", "completion": "bad", "id": 17},
    ]
    tally = run(honest, bulk.score_file, jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    counts = {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "truncated_tokens": 0,
        "dropped_tokens": 0,
        "control_tokens_as_text": 0,
    }
    error = {"code": "special_token", "message": "holds <s>", "param": "completion", "retryable": False}
    assert rows_of(tmp_path / "out.jsonl") == [
        {
            "index": 0,
            "score": 2.0,
            "signals": {"preference": {"logit": 2.0, **counts}},
            "extra": {"label": 1, "score": "gold", "index": 7},
        },
        {"index": 1, "id": 17, "error": error},
    ]
    assert (tally.scored, tally.failed) == (1, 1)
    assert tally.first_error == "row 1: special_token: holds <s>"
    assert tally.extra == ("label", "score", "index")


def test_fields_of_other_names(honest: httpx.MockTransport, tmp_path: Path) -> None:
    rows = [{"instruction": "p", "output": "2", "prompt": "kept"}, {"instruction": "p", "output": "3"}]
    source = jsonl(tmp_path / "in.jsonl", rows)
    run(honest, bulk.score_file, source, tmp_path / "out", fields=Fields("instruction", "output"))
    first, second = rows_of(tmp_path / "out")
    assert (first["score"], first["extra"], second["score"], "extra" in second) == (2.0, {"prompt": "kept"}, 3.0, False)


@pytest.mark.parametrize("last", ["nonsense", "[1]", '{"prompt": "p"}'])
def test_a_malformed_row_is_named_before_anything_is_sent(tmp_path: Path, last: str) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "p", "completion": "1"}\n' * 500 + last + "\n")
    out.write_text("before\n")

    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError("sent")

    with pytest.raises(InvalidInput) as raised:
        run(httpx.MockTransport(handler), bulk.score_file, source, out)
    assert str(raised.value).startswith(f"{source}:501: ")
    assert out.read_text() == "before\n"
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def failing_at(wire: "type[Wire]", text: str, **failure: Any) -> tuple[httpx.MockTransport, list[str]]:
    """Honest but for the chunk with the completion `text`; and the completions that it was asked about."""
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        texts = [item["completion"] for item in asked["items"]]
        seen.extend(texts)
        return wire.answer(request, **failure) if text in texts else wire.answer(request, json=wire.scored(asked))

    return httpx.MockTransport(handler), seen


def test_a_run_goes_on_where_it_stopped(honest: httpx.MockTransport, wire: "type[Wire]", tmp_path: Path) -> None:
    rows = numbered(50)
    rows[3]["completion"] = "bad"
    source, out = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    run(honest, bulk.score_file, source, out)
    whole = out.read_text()
    out.write_text("before\n")

    broken, _ = failing_at(wire, "30", status=503)
    with pytest.raises(ServerError):
        run(broken, bulk.score_file, source, out)
    part = tmp_path / "out.jsonl.part"
    done = len(rows_of(part))
    assert 0 < done <= 28
    assert out.read_text() == "before\n"
    assert describe_part(str(out)) == f"{done} rows are in {part}; run the same command again to go on from there"

    with part.open("a") as file:
        file.write('{"index": 9')  # as a kill in the middle of a line leaves it
    honest_again, seen = failing_at(wire, "none")
    progress: list[int] = []
    tally = run(honest_again, bulk.score_file, source, out, on_rows=lambda rows, total: progress.append(rows))
    assert seen == [str(n) for n in range(done, 50)]
    assert out.read_text() == whole
    assert (tally.scored, tally.failed, tally.first_error) == (49, 1, "row 3: special_token: holds <s>")
    assert progress[0] == done
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"truncation": "prompt_left"}, "truncation"),
        ({"model": "preference"}, "model"),
        ({"weights": {"preference": 1.0}}, "weights"),
        ({"fields": Fields(messages="chat")}, "fields"),
        ("input", "input"),
    ],
    ids=["truncation", "model", "weights", "fields", "input"],
)
def test_rows_of_another_run_are_not_continued(
    honest: httpx.MockTransport, wire: "type[Wire]", tmp_path: Path, change: Any, differs: str
) -> None:
    source, out = jsonl(tmp_path / "in.jsonl", numbered(50)), tmp_path / "out"
    with pytest.raises(ServerError):
        run(failing_at(wire, "30", status=503)[0], bulk.score_file, source, out)
    if change == "input":
        jsonl(tmp_path / "in.jsonl", [*numbered(49), {"prompt": "p", "completion": "50"}])
    before = (tmp_path / "out.part").read_text()
    with pytest.raises(InvalidInput, match=rf"out\.part holds rows of another run: {differs} differ\. Delete "):
        run(honest, bulk.score_file, source, out, **({} if change == "input" else change))
    assert (tmp_path / "out.part").read_text() == before


def test_standard_input_does_not_overwrite_what_can_be_continued(
    honest: httpx.MockTransport, wire: "type[Wire]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = jsonl(tmp_path / "in.jsonl", numbered(50)), tmp_path / "out"
    with pytest.raises(ServerError):
        run(failing_at(wire, "30", status=503)[0], bulk.score_file, source, out)
    before = (tmp_path / "out.part").read_text()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(source).read_bytes())))
    with pytest.raises(InvalidInput, match=r"holds rows of another run: .*input.* differ"):
        run(honest, bulk.score_file, "-", out)
    assert (tmp_path / "out.part").read_text() == before


def test_standard_input_starts_over_where_standard_input_stopped(
    honest: httpx.MockTransport, wire: "type[Wire]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Path(jsonl(tmp_path / "in.jsonl", numbered(50))).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    with pytest.raises(ServerError):
        run(failing_at(wire, "30", status=503)[0], bulk.score_file, "-", tmp_path / "out")
    assert (
        describe_part(str(tmp_path / "out"))
        == f"{len(rows_of(tmp_path / 'out.part'))} rows are in {tmp_path / 'out.part'}"
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    run(honest, bulk.score_file, "-", tmp_path / "out")
    assert [row["score"] for row in rows_of(tmp_path / "out")] == [float(n) for n in range(50)]
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out"]


def test_another_model_does_not_continue_a_run(wire: "type[Wire]", tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return wire.answer(request, json=wire.scored(json.loads(request.content), "f2"))

    source, out = jsonl(tmp_path / "in.jsonl", numbered(50)), tmp_path / "out"
    with pytest.raises(ServerError):
        run(failing_at(wire, "30", status=503)[0], bulk.score_file, source, out)
    before = (tmp_path / "out.part").read_text()
    with pytest.raises(FingerprintChanged, match="fingerprint f1 became f2"):
        run(httpx.MockTransport(handler), bulk.score_file, source, out)
    assert (tmp_path / "out.part").read_text() == before


def test_a_file_of_that_name_that_is_not_ours_is_left_alone(honest: httpx.MockTransport, tmp_path: Path) -> None:
    (tmp_path / "out.part").write_text("half a download\n")
    with pytest.raises(InvalidInput, match=r"out\.part is in the way and was not written by this command; move it"):
        run(honest, bulk.score_file, jsonl(tmp_path / "in.jsonl", numbered(2)), tmp_path / "out")
    assert (tmp_path / "out.part").read_text() == "half a download\n"


def test_two_processes_do_not_write_one_part(tmp_path: Path) -> None:
    child = os.fork
    target = str(tmp_path / "out")
    with open_output(target, {"input": "a"}) as sink:
        sink.write([{"index": 0}], "f1")
        pid = child()
        if not pid:
            try:
                with open_output(target, {"input": "a"}):
                    os._exit(1)
            except InvalidInput as error:
                os._exit(0 if "another process writes" in str(error) else 2)
        assert os.waitpid(pid, 0)[1] == 0


def test_the_model_may_not_change_within_a_file(wire: "type[Wire]", tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        late = any(item["completion"] == "9" for item in asked["items"])
        return wire.answer(request, json=wire.scored(asked, "f2" if late else "f1"))

    source = jsonl(tmp_path / "in.jsonl", numbered(10))
    with pytest.raises(FingerprintChanged):
        run(httpx.MockTransport(handler), bulk.score_file, source, tmp_path / "out.jsonl", chunk_size=1)
    assert not (tmp_path / "out.jsonl").exists()
    assert {row["score"] for row in rows_of(tmp_path / "out.jsonl.part")} <= {float(n) for n in range(9)}


def test_an_output_through_a_link_is_written_behind_it(honest: httpx.MockTransport, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "2"}])
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "out.jsonl")
    run(honest, bulk.score_file, source, link)
    assert link.is_symlink()
    assert rows_of(tmp_path / "out.jsonl")[0]["score"] == 2.0


def test_an_empty_file_is_an_empty_file(honest: httpx.MockTransport, tmp_path: Path) -> None:
    tally = run(honest, bulk.score_file, jsonl(tmp_path / "in.jsonl", []), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == ""
    assert (tally.scored, tally.fingerprint) == (0, None)
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("named", ["output", "errors"])
@pytest.mark.parametrize("place", ["missing/e", "in.jsonl/e", "missing/deeper/e.jsonl"])
def test_an_output_that_cannot_be_opened_is_named_as_it_was_given(
    honest: httpx.MockTransport, tmp_path: Path, place: str, named: str
) -> None:
    source, bad = jsonl(tmp_path / "in.jsonl", numbered(2)), str(tmp_path / place)
    paths = (source, bad) if named == "output" else (source, tmp_path / "out.jsonl")
    with pytest.raises((FileNotFoundError, NotADirectoryError)) as raised:
        run(honest, bulk.score_file, *paths, errors=bad if named == "errors" else None)
    assert raised.value.filename == bad
    assert str(raised.value).endswith(f": '{bad}'")
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl"]


def test_ranked_rows(honest: httpx.MockTransport, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "p"}]
    answer = [{"role": "assistant", "content": "4"}]
    rows = [
        {"prompt": "p", "completions": ["1", {"completion": "2", "id": "b"}, "bad", answer], "id": "q", "best": 1},
        {"messages": chat, "completions": ["5"]},
    ]
    tally = run(honest, bulk.rank_file, jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    first, second = rows_of(tmp_path / "out.jsonl")
    assert (first["index"], first["id"], first["model"], first["extra"]) == (0, "q", "crs", {"best": 1})
    assert [(one["index"], one["score"], one["margin"]) for one in first["results"]] == [
        (3, 4.0, 2.0),
        (1, 2.0, 1.0),
        (0, 1.0, None),
    ]
    assert first["results"][1]["id"] == "b"
    assert [one["index"] for one in first["errors"]] == [2]
    assert (second["index"], "id" in second, "extra" in second, len(second["results"])) == (1, False, False, 1)
    assert (tally.scored, tally.failed, tally.first_error) == (4, 1, "row 0: special_token: holds <s>")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "p"}, "`completions` must be a list"),
        ({"prompt": "p", "completions": []}, "at least one"),
        ({"completions": ["1"]}, "exactly one of `prompt` and `messages`; this row has `completions`"),
        ({"prompt": "p", "messages": [], "completions": ["1"]}, "exactly one of `prompt` and `messages`"),
        ({"prompt": "p", "completions": [3]}, "`completion` must be text"),
        ({"prompt": "p", "completions": [{"completion": "1", "score": 2}]}, "unknown key `score`"),
        ({"messages": "p", "completions": ["1"]}, "`messages` must be a list of messages"),
    ],
)
def test_a_malformed_rank_row_is_named(honest: httpx.MockTransport, tmp_path: Path, row: Any, says: str) -> None:
    source = jsonl(tmp_path / "in.jsonl", [row])
    with pytest.raises(InvalidInput, match=f":1: .*{says}"):
        run(honest, bulk.rank_file, source, tmp_path / "out.jsonl")


def test_rendered_rows(honest: httpx.MockTransport, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "1", "id": "a", "label": 0}, {"prompt": "p", "completion": "bad"}]
    shown: list[Any] = []
    tally = run(
        honest,
        bulk.render_file,
        jsonl(tmp_path / "in.jsonl", rows),
        tmp_path / "out.jsonl",
        on_item=shown.append,
        chunk_size=1,
    )
    signal = {
        "text": "<user>p</user>1.5",
        "ids": [5, 6, 7, 8],
        "boundary": 2,
        "score_policy": "last_token",
        "score_start": 3,
        "score_end": 4,
        "truncated_tokens": 1,
        "dropped_tokens": 0,
        "control_tokens_as_text": 0,
    }
    first, second = rows_of(tmp_path / "out.jsonl")
    assert first == {"index": 0, "id": "a", "signals": {"preference": signal}, "extra": {"label": 0}}
    assert (second["index"], second["error"]["code"]) == (1, "special_token")
    assert [(item.index, item.id) for item in shown] == [(0, "a"), (1, None)]
    assert (tally.scored, tally.failed, tally.fingerprint) == (1, 1, None)
