"""Files: one row out per row in, in order; a failure leaves no half file."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from assay_client import bulk
from assay_client.client import RewardClient
from assay_client.errors import FingerprintChanged, InvalidInput
from assay_client.types import Item

if TYPE_CHECKING:
    from tests.client.conftest import Wire


def jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def client(honest: httpx.MockTransport) -> Iterator[RewardClient]:
    with RewardClient("http://assay.test", transport=honest, chunk_size=4, max_concurrency=3) as client:
        yield client


def test_every_row_comes_out_in_order_under_its_line(client: RewardClient, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": str(n), "id": f"r{n}"} for n in range(50)])
    told: list[int] = []
    tally = bulk.score_file(client, source, str(tmp_path / "out.jsonl"), on_rows=told.append)
    out = rows_of(tmp_path / "out.jsonl")
    assert [(row["index"], row["id"], row["score"]) for row in out] == [(n, f"r{n}", float(n)) for n in range(50)]
    assert (tally.scored, tally.failed, tally.first_error, tally.fingerprint) == (50, 0, None, "f1")
    assert sum(told) == 50


def test_a_row_out_is_the_servers_row(client: RewardClient, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "2"}, {"prompt": "p", "completion": "bad"}])
    tally = bulk.score_file(client, source, str(tmp_path / "out.jsonl"))
    counts = {"prompt_tokens": 7, "completion_tokens": 2, "truncated_tokens": 0}
    error = {"code": "special_token", "message": "holds <s>", "param": "completion", "retryable": False}
    assert rows_of(tmp_path / "out.jsonl") == [
        {"index": 0, "score": 2.0, "signals": {"preference": {"logit": 2.0, **counts}}},
        {"index": 1, "error": error},
    ]
    assert (tally.scored, tally.failed) == (1, 1)
    assert tally.first_error == "row 1: special_token: holds <s>"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"prompt": "p", "completion": "1"}\nnonsense\n', ":2: not JSON"),
        (b'{"prompt": "p", "completion": "1"}\n[1]\n', ":2: expected an object, got list"),
        (b'{"prompt": "p", "completion": "1"}\n{"prompt": "p"}\n', ":2: an item has exactly one of"),
        (b'{"prompt": "p", "completion": "1", "label": 1}\n', ":1: unknown key `label`"),
        (b'\n{"prompt": "p", "completion": "1"}\n', ":1: blank line"),
        (b'{"prompt": "\xff", "completion": "1"}\n', ":1: not UTF-8"),
    ],
    ids=["json", "list", "item", "key", "blank", "utf8"],
)
def test_a_malformed_row_is_named_and_leaves_no_file(
    client: RewardClient, tmp_path: Path, text: bytes, says: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(text)
    out = tmp_path / "out.jsonl"
    out.write_text("before\n")
    with pytest.raises(InvalidInput) as raised:
        bulk.score_file(client, str(source), str(out))
    assert str(raised.value).startswith(f"{source}{says}")
    assert out.read_text() == "before\n"
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def test_a_bom_and_blank_lines_at_the_end_are_no_fault(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"prompt": "p", "completion": "1"}\n\n \n')
    assert list(bulk.read_rows(str(source), Item.of)) == [Item(prompt="p", completion="1")]
    assert bulk.count_rows(str(source)) == 1


def test_rows_are_read_only_as_far_as_they_are_needed(client: RewardClient, tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": "p", "completion": "1"}] * 400
    source = jsonl(tmp_path / "in.jsonl", [*rows, {"oops": 1}])
    told: list[int] = []
    with pytest.raises(InvalidInput, match=":401: unknown key"):
        bulk.score_file(client, source, str(tmp_path / "out"), on_rows=told.append)
    # All but the two windows of chunks that were in flight had come back when the last row was read.
    assert sum(told) >= 400 - 2 * 3 * 4


def test_the_model_may_not_change_within_a_file(wire: "type[Wire]", tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        late = asked["items"][0]["completion"] == "9"
        return wire.answer(request, json=wire.scored(asked, "f2" if late else "f1"))

    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": str(n)} for n in range(10)])
    transport = httpx.MockTransport(handler)
    with (
        RewardClient("http://assay.test", transport=transport, chunk_size=1) as client,
        pytest.raises(FingerprintChanged),
    ):
        bulk.score_file(client, source, str(tmp_path / "out.jsonl"))
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_a_file_may_be_scored_onto_itself_through_a_link(client: RewardClient, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "2"}])
    link = tmp_path / "link.jsonl"
    link.symlink_to(source)
    bulk.score_file(client, source, str(link))
    assert link.is_symlink()
    assert rows_of(tmp_path / "in.jsonl")[0]["score"] == 2.0


def test_an_empty_file_is_an_empty_file(client: RewardClient, tmp_path: Path) -> None:
    tally = bulk.score_file(client, jsonl(tmp_path / "in.jsonl", []), str(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_text() == ""
    assert (tally.scored, tally.fingerprint) == (0, None)


def test_ranked_rows(client: RewardClient, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "p"}]
    source = jsonl(
        tmp_path / "in.jsonl",
        [
            {"prompt": "p", "completions": ["1", {"completion": "2", "id": "b"}, "bad"], "id": "q"},
            {"messages": chat, "completions": ["5"]},
        ],
    )
    tally = bulk.rank_file(client, source, str(tmp_path / "out.jsonl"))
    first, second = rows_of(tmp_path / "out.jsonl")
    assert (first["index"], first["id"], first["model"]) == (0, "q", "crs")
    assert [(one["index"], one["score"], one["margin"]) for one in first["results"]] == [
        (1, 2.0, 1.0),
        (0, 1.0, None),
    ]
    assert first["results"][0]["id"] == "b"
    assert [one["index"] for one in first["errors"]] == [2]
    assert (second["index"], "id" in second, len(second["results"])) == (1, False, 1)
    assert (tally.scored, tally.failed, tally.first_error) == (3, 1, "row 0: special_token: holds <s>")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "p"}, "`completions` must be a list"),
        ({"prompt": "p", "completions": []}, "at least one"),
        ({"completions": ["1"]}, "exactly one of `prompt` or `messages`"),
        ({"prompt": "p", "messages": [], "completions": ["1"]}, "exactly one of `prompt` or `messages`"),
        ({"prompt": "p", "completions": ["1"], "label": 0}, "unknown key `label`"),
        ({"prompt": "p", "completions": [3]}, "not int"),
        ({"prompt": "p", "completions": [{"completion": "1", "score": 2}]}, "unknown key `score`"),
        ({"messages": "p", "completions": ["1"]}, "`messages` must be a list of messages"),
        ({"prompt": "p", "completions": ["1"], "id": 3}, "`id` must be text"),
    ],
)
def test_a_malformed_rank_row_is_named(client: RewardClient, tmp_path: Path, row: Any, says: str) -> None:
    source = jsonl(tmp_path / "in.jsonl", [row])
    with pytest.raises(InvalidInput, match=f":1: .*{says}"):
        bulk.rank_file(client, source, str(tmp_path / "out.jsonl"))
