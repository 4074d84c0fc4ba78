"""Inputs as people have them: JSON lines and lists, compressed or not, with the line ends of any system."""

import bz2
import gzip
import io
import json
import lzma
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay_client._rows import Fields, ItemRow, RankRow, read_rows, survey
from assay_client.errors import InvalidInput
from assay_client.messages import Message
from assay_client.types import Item

OF = partial(ItemRow.of, fields=Fields())
TWO = [{"prompt": "p", "completion": "é"}, {"prompt": "p", "completion": "2", "label": None}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in TWO).encode()
FORMS = {
    "lines": LINES,
    "no end": LINES.rstrip(),
    "crlf": LINES.replace(b"\n", b"\r\n"),
    "blank lines": b"\r\n\n" + LINES.replace(b"\n", b"\n \n\r\n") + b"\n\n",
    "bom": b"\xef\xbb\xbf" + LINES,
    "list": json.dumps(TWO).encode(),
    "shown list": b"\xef\xbb\xbf\n" + json.dumps(TWO, indent=2).encode() + b"\n",
}
FORMS |= {f"{name}, gzip": gzip.compress(body) for name, body in FORMS.items()}
FORMS |= {"gzip in two parts": gzip.compress(LINES[:20]) + gzip.compress(LINES[20:])}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stdin", [False, True])
def test_every_form_is_the_same_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str, stdin: bool) -> None:
    source = tmp_path / "in"
    source.write_bytes(FORMS[form])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FORMS[form])))
    assert list(read_rows("-" if stdin else str(source), OF)) == [
        ItemRow(Item(prompt="p", completion="é"), {}),
        ItemRow(Item(prompt="p", completion="2"), {"label": None}),
    ]


GOOD = b'{"prompt": "p", "completion": "1"}\n'
FAULTS = {
    "json": (GOOD + b"nonsense\n", ":2: not JSON"),
    "value": (GOOD + b"[1]\n", ":2: expected an object, got list"),
    "item": (b"\n" + GOOD + b'{"prompt": "p"}\n', ":3: an item has `prompt` with `completion`, or `messages`"),
    "other names": (
        b'{"instruction": "p", "output": "1"}',
        ":1: an item has `prompt` with `completion`, or `messages`; this row has `instruction`, `output`. "
        "Name its fields with --prompt-field and --completion-field, or --messages-field",
    ),
    "both": (b'{"prompt": "p", "completion": "1", "messages": []}', ":1: an item has exactly one of"),
    "twice": (b'{"prompt": "p", "completion": "1", "completion": "2"}', ":1: key `completion` occurs twice"),
    "surrogate": (GOOD + b'{"prompt": "p\\ud800", "completion": "1"}\n', ":2: a text holds a lone surrogate"),
    "utf8": (b'{"prompt": "\xff", "completion": "1"}\n', ":1: not UTF-8"),
    "list": (b'[{"prompt": "p", "completion": "1"}, 3]', "[1]: expected an object, got int"),
    "list without end": (b'[{"prompt": "p", "completion": "1"},', ": not JSON"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), ": is packed by zstd; send it unpacked: zstd -dc FILE | assay … -"),
    "bzip2": (bz2.compress(GOOD), ": is packed by bzip2"),
    "xz": (lzma.compress(GOOD), ": is packed by xz"),
    "zip": (b"PK\x03\x04" + bytes(20), ": is a zip archive"),
    "Parquet by another name": (b"PAR1" + bytes(20), ": is Parquet, which is read only from a file"),
    "cut gzip": (gzip.compress(GOOD)[:-9], ": damaged gzip data"),
    "changed gzip": (gzip.compress(GOOD)[:-8] + b"\0" * 8, ": damaged gzip data"),
    "no gzip": (b"\x1f\x8bnothing", ": damaged gzip data"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_place(tmp_path: Path, fault: str) -> None:
    body, says = FAULTS[fault]
    source = tmp_path / "in.jsonl"
    source.write_bytes(body)
    with pytest.raises(InvalidInput) as raised:
        survey(str(source), OF)
    assert str(raised.value).startswith(f"{source}{says}")


def test_a_survey_counts_rows_and_names_what_is_not_an_item(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'\n{"prompt": "p", "completion": "1", "b": 1}\n\n{"prompt": "p", "completion": "1", "a": 1}\n')
    found = survey(str(source), OF)
    assert found is not None
    assert (found.rows, found.extra) == (2, ("b", "a"))
    source.write_bytes(source.read_bytes() + b"\n")
    again = survey(str(source), OF)
    assert again is not None
    assert again.sha256 != found.sha256
    assert survey("-", OF) is None


def test_rows_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(GOOD * 3 + b"nonsense\n")
    rows = read_rows(str(source), OF)
    assert [next(rows).item.completion for _ in range(3)] == ["1", "1", "1"]
    with pytest.raises(InvalidInput, match=":4: not JSON"):
        next(rows)


@given(
    st.dictionaries(st.text(max_size=3) | st.sampled_from(["prompt", "id", "index", "score"]), st.integers()),
    st.sampled_from(["prompt", "question", "index"]),
)
def test_no_key_of_a_row_is_lost_or_changed(others: dict[str, int], prompt_field: str) -> None:
    """Whatever a row holds beside its item comes back, an id as the id and all else under `extra`."""
    row: dict[str, Any] = {**others, prompt_field: "p", "answer": "c"}
    made = ItemRow.of(row, Fields(prompt_field, "answer"))
    assert made.item == Item(prompt="p", completion="c")
    assert made.extra == {key: value for key, value in row.items() if key not in (prompt_field, "answer", "id")}
    assert made.id == row.get("id")


def test_characters_are_those_of_all_texts() -> None:
    chat = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cde"}]
    assert OF({"messages": chat}).chars == 5
    assert OF({"prompt": chat, "completion": "f"}).chars == 6
    assert OF({"prompt": "abc", "completion": "de"}).chars == 5
    assert OF({"prompt": [Message("user", "abc")], "completion": ""}).chars == 3
    assert RankRow.of({"prompt": "abc", "completions": ["d", "ef"]}).chars == 3
