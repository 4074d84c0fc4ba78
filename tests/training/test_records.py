"""Rows of data sets to records, and the errors of a row with file, row and field."""

import json
from pathlib import Path
from typing import Any

import pytest

from assay_service.scoring.item import Item, Message
from assay_training.config.data import Format, Source
from assay_training.records import plain
from assay_training.records.hh import parse_dialogue
from assay_training.records.record import Labelled, Pair, Ranking, RecordError, find_group
from assay_training.records.rows import Row, read_json_lines
from assay_training.records.sources import hash_data, read_labelled, read_rankings, read_spoken
from assay_training.reward_model.checks import count_ties_only
from tests.training import tiny
from tests.training.tiny import dialogue, feedback_row, hh_row, safety_row

FORMATS = {"hh_rlhf": "hh"}


def sources(*names: str) -> list[Source]:
    return [Source.model_validate({"name": name, "format": FORMATS.get(name, name)}) for name in names]


def rankings(data: Path, source: str, rows: list[Any], file: str = "x.jsonl.gz") -> list[Ranking]:
    tiny.write_rows(data / source / file, rows)
    return [record for record in read_rankings(data, sources(source)).records if isinstance(record, Ranking)]


def labels(data: Path, source: str, rows: list[Any]) -> list[Labelled]:
    tiny.write_rows(data / source / "x.jsonl.gz", rows)
    return [record for record in read_labelled(data, sources(source)).records if isinstance(record, Labelled)]


def test_a_dialogue_is_parsed_turn_by_turn_and_stripped() -> None:
    text = "\n\nHuman: Hi:  \n\nreally?\n\nAssistant:  Yes.\n\n\nHuman:\n\nAssistant: The Human: said so "
    assert parse_dialogue(Row("here", "x", {"chosen": text}), "chosen") == (
        Message("user", "Hi:  \n\nreally?"),
        Message("assistant", "Yes."),
        Message("user", ""),
        Message("assistant", "The Human: said so"),
    )


def test_an_hh_row_of_several_turns(tmp_path: Path) -> None:
    turns = ("How do I bake?", "Mix.", "And then?")
    row = {"chosen": dialogue(*turns, " Wait. "), "rejected": dialogue(*turns, "No.")}
    (record,) = rankings(tmp_path, "hh_rlhf", [row], "helpful-base.test.jsonl.gz")
    assert record == Ranking(
        source="hh_rlhf/helpful-base",
        group="how do i bake",
        prompt=(Message("user", "How do I bake?"), Message("assistant", "Mix."), Message("user", "And then?")),
        completions=("Wait.", "No."),
        pairs=(Pair(0, 1),),
    )
    assert record.data_set == "hh_rlhf"
    assert [item.completion for item in record.items] == ["Wait.", "No."]
    assert all(item.prompt == record.prompt for item in record.items)


def test_faulty_hh_rows_are_dropped(tmp_path: Path) -> None:
    rows = [
        hh_row("same reply", "Yes.", "Yes. "),
        {"chosen": dialogue("a", "b", "c", "d"), "rejected": dialogue("a", "B", "c", "e")},
        {"chosen": dialogue("a", "b"), "rejected": dialogue("a", "b", "c", "d")},
        {"chosen": dialogue("ends with", "a", "human"), "rejected": dialogue("ends with", "a", "person")},
        hh_row("good", "Yes.", "No."),
    ]
    assert [record.group for record in rankings(tmp_path, "hh_rlhf", rows)] == ["good"]


def test_every_file_of_a_source_is_read(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "hh_rlhf" / "b-base.test.jsonl.gz", [hh_row("b", "1", "2")])
    tiny.write_rows(tmp_path / "hh_rlhf" / "a-base.test.jsonl.gz", [hh_row("a", "1", "2")])
    assert [record.source for record in read_rankings(tmp_path, sources("hh_rlhf")).records] == [
        "hh_rlhf/a-base",
        "hh_rlhf/b-base",
    ]


def test_the_better_rated_answer_comes_first_in_its_pairs(tmp_path: Path) -> None:
    rows = [
        feedback_row("Q?", "bad", "Bad", "Could be Improved"),
        feedback_row("Q?", "best", "Excellent", "Acceptable"),
        feedback_row("Q?", "so-so", "Bad", "Acceptable"),
        feedback_row("one answer", "alone", "Bad"),
    ]
    (record,) = rankings(tmp_path, "feedbackqa", rows)
    assert (record.group, record.prompt) == ("q", (Message("user", "Q?"),))
    assert record.completions == ("bad", "best", "so-so")
    assert {(pair.better, pair.worse): pair.gap for pair in record.pairs} == pytest.approx(
        {(1, 0): 2 / 3, (1, 2): 1 / 2, (2, 0): 1 / 6}
    )
    assert (len(record.pairs), record.ties) == (3, ())


def test_equal_means_are_ties_even_where_their_floats_differ(tmp_path: Path) -> None:
    """7/9 both, but as floats the mean of 1/3 1 1 is above that of 2/3 2/3 1."""
    rows = [
        feedback_row("tie?", "a", "Could be Improved", "Excellent", "Excellent"),
        feedback_row("tie?", "b", "Acceptable", "Acceptable", "Excellent"),
        feedback_row("partly?", "a", "Could be Improved", "Excellent", "Excellent"),
        feedback_row("partly?", "b", "Acceptable", "Acceptable", "Excellent"),
        feedback_row("partly?", "c", "Acceptable", "Excellent", "Excellent"),
    ]
    tied, record = rankings(tmp_path, "feedbackqa", rows)
    assert (tied.group, tied.pairs, tied.ties) == ("tie", (), ((0, 1),))
    assert (record.group, record.ties) == ("partly", ((0, 1),))
    assert {(pair.better, pair.worse) for pair in record.pairs} == {(2, 0), (2, 1)}


@pytest.mark.parametrize(
    ("ratings", "label"),
    [
        (("Bad", "Excellent"), 0.5),
        (("Bad", "Bad"), 0.0),
        (("Excellent",), 1.0),
        (("Could be Improved", "Bad"), 1 / 6),
        (("Excellent", "Acceptable"), 5 / 6),
        (("Acceptable", "Acceptable"), 2 / 3),
    ],
)
def test_a_feedbackqa_label_is_the_mean_of_its_raters(ratings: tuple[str, ...], label: float, tmp_path: Path) -> None:
    (record,) = labels(tmp_path, "feedbackqa", [feedback_row("Is it?", "It is.", *ratings)])
    assert record.label == pytest.approx(label, abs=1e-12)
    assert (record.source, record.group, record.item) == ("feedbackqa", "is it", Item.of("Is it?", "It is."))


def test_diasafety_labels(tmp_path: Path) -> None:
    rows = [safety_row("I'm sad.", "Good.", "Unsafe"), safety_row("I'm sad!", "Why?", "Safe")]
    records = labels(tmp_path, "diasafety", rows)
    assert [record.label for record in records] == [0.0, 1.0]
    assert [record.group for record in records] == ["i m sad", "i m sad"]
    assert [record.item for record in records] == [Item.of("I'm sad.", "Good."), Item.of("I'm sad!", "Why?")]
    assert {record.data_set for record in records} == {"diasafety"}


def test_the_group_of_a_question_is_its_words() -> None:
    assert find_group("  What's  THE\ttime?! ") == find_group("what s the time") == "what s the time"
    assert find_group("What is the time?") != find_group("What was the time?")
    assert find_group("Größe: 5") == "größe 5"


def test_questions_without_words_are_groups_of_their_own() -> None:
    assert [find_group(text) for text in ("?!", " … ", "🙂", "⭐")] == ["?!", "…", "🙂", "⭐"]


GOOD_HH = hh_row("a", "b", "c")
GOOD_SAFETY = safety_row("a", "b", "Safe")
GOOD_FEEDBACK = feedback_row("a", "b", "Bad")


@pytest.mark.parametrize(
    ("source", "rows", "row", "field"),
    [
        ("hh_rlhf", [GOOD_HH, {"chosen": dialogue("a", "b")}], 2, "rejected"),
        ("hh_rlhf", [{"chosen": "Human: Tea?\n\nAssistant: Yes.", "rejected": "x"}], 1, "'chosen' does not begin with"),
        ("hh_rlhf", [GOOD_HH, GOOD_HH, '{"chosen": '], 3, "Expecting value"),
        ("feedbackqa", [GOOD_FEEDBACK, {"question": "a", "rating": ["Bad"]}], 2, "passage"),
        ("feedbackqa", [GOOD_FEEDBACK, feedback_row("a", "b")], 2, "'rating' is empty"),
        ("feedbackqa", [feedback_row("a", "b", "Bad", "Poor")], 1, "'rating'"),
    ],
)
def test_a_malformed_ranking_is_reported_by_file_row_and_field(
    source: str, rows: list[Any], row: int, field: str, tmp_path: Path
) -> None:
    with pytest.raises(RecordError) as caught:
        rankings(tmp_path, source, rows)
    assert str(caught.value).startswith(f"{tmp_path / source / 'x.jsonl.gz'}:{row}: ")
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("source", "rows", "row", "field"),
    [
        ("diasafety", [GOOD_SAFETY, {"context": "a", "label": "Safe"}], 2, "response"),
        ("feedbackqa", [GOOD_FEEDBACK, feedback_row("a", "b", "good")], 2, "'rating'"),
        ("diasafety", [GOOD_SAFETY, safety_row("a", "b", "safe")], 2, "'label'"),
        ("feedbackqa", [{"question": "a", "passage": {"reference": {}}, "rating": ["Bad"]}], 1, "section_content"),
        ("diasafety", [GOOD_SAFETY, {"context": None, "response": "b", "label": "Safe"}], 2, "context"),
        ("diasafety", [GOOD_SAFETY, "5"], 2, "not an object"),
    ],
)
def test_a_malformed_label_is_reported_by_file_row_and_field(
    source: str, rows: list[Any], row: int, field: str, tmp_path: Path
) -> None:
    with pytest.raises(RecordError) as caught:
        labels(tmp_path, source, rows)
    assert str(caught.value).startswith(f"{tmp_path / source / 'x.jsonl.gz'}:{row}: ")
    assert field in str(caught.value)


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="hh_rlhf: no such folder"):
        read_rankings(tmp_path, sources("hh_rlhf"))
    with pytest.raises(RecordError, match="diasafety: no such folder"):
        hash_data(tmp_path, sources("diasafety"), [])


def test_a_format_without_the_needed_kind_of_record_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="diasafety: format 'diasafety' has no rankings; these have: hh, feedbackqa"):
        read_rankings(tmp_path, sources("diasafety"))
    with pytest.raises(RecordError, match="hh_rlhf: format 'hh' has no labelled items; these have: feedbackqa"):
        read_labelled(tmp_path, sources("hh_rlhf"))
    with pytest.raises(RecordError, match="feedbackqa: format 'feedbackqa' has no dialogues or texts; these have: hh"):
        read_spoken(tmp_path, sources("feedbackqa"))


def test_a_source_with_nothing_of_the_kind_in_it_is_reported(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "hh_rlhf" / "x.jsonl.gz", [hh_row("same", "Yes.", "Yes.")])
    with pytest.raises(RecordError, match="hh_rlhf: no rankings in the source"):
        read_rankings(tmp_path, sources("hh_rlhf"))


def test_hashes_name_every_file_that_is_read_and_no_other(tmp_path: Path) -> None:
    """The digest of the gzip bytes, as `sha256sum` prints it."""
    folder = tmp_path / "diasafety"
    folder.mkdir()
    (folder / "train.jsonl.gz").write_bytes(b"abc")
    (folder / "LICENSE").write_text("free")
    assert hash_data(tmp_path, sources("diasafety"), []) == {
        "diasafety/train.jsonl.gz": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    }


def test_a_broken_file_is_reported_by_its_name(tmp_path: Path) -> None:
    file = tiny.write_rows(tmp_path / "hh_rlhf" / "x.jsonl.gz", [GOOD_HH] * 50)
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(RecordError, match=r"x.jsonl.gz: "):
        read_rankings(tmp_path, sources("hh_rlhf"))
    file.unlink()
    (tmp_path / "hh_rlhf" / "y.jsonl").write_bytes(json.dumps(GOOD_HH).encode() + b'\n{"chosen": "\xff"}\n')
    with pytest.raises(RecordError, match=r"y.jsonl:2: .*utf-8"):
        read_rankings(tmp_path, sources("hh_rlhf"))


def test_a_system_prompt_is_not_a_group() -> None:
    """The same for a whole data set, it would put all of it on one side of the split."""
    rows = [
        Row(
            "here",
            "x",
            {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]}
            | {"completion": "a", "label": 1},
        )
        for question in ("How?", "Why?")
    ]
    assert [record.group for record in plain.read_labelled("x", rows)] == ["how", "why"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a", "label": 0.1, "label": 0.9}', "field 'label' occurs twice"),
        (b'{"prompt": [{"role": "user", "content": "a", "role": "system"}]}', "field 'role' occurs twice"),
        (b'{"prompt": "a \xed\xa0\x80 b"}', "'utf-8' codec can't decode byte 0xed"),
        (b'{"prompt": "a \\ud800 b"}', "surrogates not allowed"),
    ],
)
def test_a_line_that_cannot_be_meant_is_reported_by_its_number(line: bytes, message: str, tmp_path: Path) -> None:
    """JSON's last key of a name would win, and half of a surrogate pair is not text."""
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a byte order mark is none of it"}\n' + line + b"\n")
    rows = read_json_lines(tmp_path / "x.jsonl")
    assert next(rows).text("prompt")
    with pytest.raises(RecordError, match=rf"x\.jsonl:2: .*{message}"):
        next(rows)


@pytest.mark.parametrize(
    ("folder", "format_", "dropped", "ties_alone"),
    [
        ("feedbackqa", "feedbackqa", {"a pair of equal completions": 1}, 50),
        (
            "arena_bench_gpt4_scores",
            "arena_bench",
            {"no score": 33, "empty completion": 27, "a pair of equal completions": 7, "a single completion": 2},
            0,
        ),
        ("qa_feedback_dev", "qa_feedback", {}, 12),
        ("oasst1_sample", "oasst", {"fewer than two ranked completions": 8}, 0),
    ],
)
def test_what_published_rankings_do_not_teach_is_counted(
    folder: str, format_: Format, dropped: dict[str, int], ties_alone: int, request: pytest.FixtureRequest
) -> None:
    data = request.config.getoption("--data")
    if data is None or not (data / folder).is_dir():
        pytest.skip(f"the published data are not there (--data=DIR with {folder} in it)")
    found = read_rankings(data, [Source(name=folder, format=format_)])
    assert found.dropped == {f"{folder}: {reason}": count for reason, count in dropped.items()}
    assert sum(count_ties_only(found.records).values()) == ties_alone
