"""Preference sets in the shapes of TRL, UltraFeedback-binarized, Skywork and RewardBench 2; the rows are our own."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from assay_service.scoring.item import Message
from assay_training.config.data import Source
from assay_training.records.record import Pair, Prompt, Ranking, RecordError
from assay_training.records.rows import read_file_rows
from assay_training.records.sources import Read, read_labelled, read_prompts, read_rankings
from assay_training.reward_model.command import run
from tests.training import tiny

USER = {"role": "user", "content": "Flat tyre?"}
GOOD = {"role": "assistant", "content": "Take the wheel off."}
BAD = {"role": "assistant", "content": "No."}
ASKED = (Message("user", "Flat tyre?"),)
EXPECTED = Ranking("set", "flat tyre", ASKED, ("Take the wheel off.", "No."), (Pair(0, 1),))

SHAPES: dict[str, dict[str, Any]] = {
    "TRL, explicit": {"prompt": "Flat tyre?", "chosen": "Take the wheel off.", "rejected": "No."},
    "TRL, explicit, conversational": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "TRL, implicit, conversational": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "UltraFeedback": {
        "prompt": "Flat tyre?",
        "prompt_id": "0a",
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
        "messages": [USER, GOOD],
        "score_chosen": 8.5,
        "score_rejected": 4.0,
    },
    "full-hh-rlhf": {
        "prompt": "\n\nHuman: Flat tyre?\n\nAssistant:",
        "response": " Take the wheel off.",
        "chosen": " Take the wheel off.",
        "rejected": " No.",
    },
    "Skywork": {"chosen": [USER, GOOD], "rejected": [USER, BAD], "source": "ours"},
    "RewardBench 2": {
        "id": "7",
        "prompt": "Flat tyre?",
        "chosen": ["Take the wheel off."],
        "rejected": ["No."],
        "num_correct": 1,
        "models": ["a", "b"],
        "subset": "Focus",
    },
    "lists of conversations": {"chosen": [[USER, GOOD]], "rejected": [[USER, BAD]]},
    "messages with nulls, as Parquet has them": {
        "chosen": [USER | {"tool_calls": None}, GOOD | {"tool_calls": None}],
        "rejected": [USER, BAD],
        "tools": None,
    },
}


def read(data: Path, rows: list[Any], **source: Any) -> Read[Any]:
    tiny.write_rows(data / "set" / "a.jsonl.gz", rows)
    return read_rankings(data, [Source.model_validate({"name": "set", "format": "preferences"} | source)])


@pytest.mark.parametrize("row", SHAPES.values(), ids=SHAPES)
def test_every_published_shape_is_read_as_the_same_ranking(row: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path, [row]).records == [EXPECTED]


def test_what_was_understood_is_reported_by_field(tmp_path: Path) -> None:
    found = read(tmp_path, [SHAPES["UltraFeedback"]] * 2 + [SHAPES["Skywork"]])
    assert found.understood == {
        "set": {
            "rows": 3,
            "ignored: prompt_id": 2,
            "ignored: messages": 2,
            "chosen from 'chosen': messages": 3,
            "rejected from 'rejected': messages": 3,
            "prompt from the common beginning of 'chosen' and 'rejected'": 3,
            "not used: score_chosen, score_rejected (`largest_gap` or `--largest-gap` makes their difference a gap)": 2,
            "ignored: source": 1,
        }
    }
    (line,) = found.report_lines()
    assert line.startswith("set: 3 rows; ignored: prompt_id (2 rows); ignored: messages (2 rows); chosen from 'chosen'")
    assert "ignored: source (1 rows)" in line


def test_replies_that_repeat_the_prompt_and_keys_of_messages_that_are_not_read_are_reported(tmp_path: Path) -> None:
    twice = {"prompt": "Flat tyre?", "chosen": "Flat tyre? Take it off.", "rejected": "Flat tyre? No."}
    named = {"prompt": [USER | {"name": "kim", "id": 3, "refusal": None}], "chosen": "Yes.", "rejected": "No."}
    said = read(tmp_path, [twice, named]).understood["set"]
    assert said["chosen and rejected begin with the prompt, which is read twice then"] == 1
    assert {phrase for phrase in said if "in messages" in phrase} == {
        "ignored in messages: id",
        "ignored in messages: name",
    }


def test_a_prompt_in_the_turns_of_hh_keeps_them(tmp_path: Path) -> None:
    prompt = tiny.dialogue("Flat tyre?", "Yes.", "And now?") + "\n\nAssistant:"
    row = {"prompt": prompt, "chosen": " Take it off.", "rejected": " No."}
    (record,) = read(tmp_path, [row]).records
    assert record.prompt == (*ASKED, Message("assistant", "Yes."), Message("user", "And now?"))
    assert record.completions == ("Take it off.", "No.")
    (literal,) = read(tmp_path, [row | {"prompt": "What comes after\n\nHuman: and\n\nAssistant:"}]).records
    assert [message.role for message in literal.prompt] == ["user"]


def test_a_conversation_of_several_turns_keeps_them(tmp_path: Path) -> None:
    before = [{"role": "system", "content": "Be brief."}, USER, BAD, {"role": "user", "content": "Why not?"}]
    (implicit,) = read(tmp_path, [{"chosen": [*before, GOOD], "rejected": [*before, BAD]}]).records
    (explicit,) = read(
        tmp_path, [{"prompt": before[:2], "chosen": [*before[2:], GOOD], "rejected": [*before[2:], BAD]}]
    ).records
    assert implicit == explicit
    assert implicit.prompt == tuple(Message(m["role"], m["content"]) for m in before)
    assert (implicit.completions, implicit.group) == (("Take the wheel off.", "No."), "flat tyre")


def test_a_conversation_that_the_assistant_begins_needs_no_prompt(tmp_path: Path) -> None:
    hello = {"role": "assistant", "content": "Hello."}
    (record,) = read(tmp_path, [{"chosen": [hello, USER, GOOD], "rejected": [hello, USER, BAD]}]).records
    assert record.prompt == (Message("assistant", "Hello."), *ASKED)


def test_several_replies_make_a_pair_each(tmp_path: Path) -> None:
    (record,) = read(tmp_path, [{"prompt": "Flat tyre?", "chosen": ["a", "b"], "rejected": ["c", "d"]}]).records
    assert record.completions == ("a", "b", "c", "d")
    assert record.pairs == (Pair(0, 2), Pair(0, 3), Pair(1, 2), Pair(1, 3))
    assert record.ties == ()


def test_one_line_maps_the_names_of_other_fields(tmp_path: Path) -> None:
    row = {
        "question": "Flat tyre?",
        "best": "Take the wheel off.",
        "worse1": "No.",
        "worse2": "Go.",
        "prompt": "unused",
    }
    fields = {"prompt": "question", "chosen": "best", "rejected": ["worse1", "worse2"]}
    found = read(tmp_path, [row, row | {"worse2": None}], fields=fields)
    assert [record.completions for record in found.records] == [
        ("Take the wheel off.", "No.", "Go."),
        EXPECTED.completions,
    ]
    assert all(record.prompt == ASKED for record in found.records)
    assert found.understood["set"] == {
        "rows": 2,
        "chosen from 'chosen' (mapped from best): text": 2,
        "rejected from 'rejected' (mapped from worse1 and worse2): list of texts": 2,
        "prompt from 'prompt' (mapped from question): text": 2,
    }


def test_the_fields_of_labels_are_mapped_as_well(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "set" / "a.jsonl.gz", [{"instruction": "Hi?", "output": "Hi.", "score": 0.5, "id": 3}])
    given = {"name": "set", "format": "labels"}
    fields = {"prompt": "instruction", "completion": "output", "label": "score"}
    found = read_labelled(tmp_path, [Source.model_validate(given | {"fields": fields})])
    assert [(record.item.completion, record.label) for record in found.records] == [("Hi.", 0.5)]  # type: ignore[union-attr]
    assert found.understood == {"set": {"rows": 1, "ignored: id": 1}}


@pytest.mark.parametrize(
    ("more", "gaps", "said"),
    [
        ({"score_chosen": 8.5, "score_rejected": 4}, [0.5], "gap from 'score_chosen' minus 'score_rejected'"),
        ({"score_chosen": "8.5", "score_rejected": "4.0"}, [0.5], "as a share of 9"),
        ({"score_chosen": 9, "score_rejected": 9}, [0.0], "as a share of 9"),
        ({"margin": 4.5}, [0.5], "gap from 'margin', as a share of 9"),
        ({"margin": "4.5"}, [0.5], "gap from 'margin', as a share of 9"),
        ({"gap": 0.25}, [0.25], "gap from 'gap'"),
        ({}, [None], "rows"),
        (
            {"rejected": ["No.", "Go."], "score_chosen": [10], "score_rejected": [1, 5.5]},
            [1.0, 0.5],
            "gap from 'score_chosen' minus 'score_rejected', as a share of 9",
        ),
    ],
)
def test_scores_and_margins_become_gaps_on_the_declared_scale(
    more: dict[str, Any], gaps: list[float | None], said: str, tmp_path: Path
) -> None:
    found = read(tmp_path, [SHAPES["TRL, explicit"] | more], largest_gap=9)
    assert [pair.gap for record in found.records for pair in record.pairs] == gaps
    assert any(said in phrase for phrase in found.understood["set"])


@pytest.mark.parametrize(
    ("row", "source", "message"),
    [
        ({"margin": 2}, {}, "field 'margin' is a target margin: declare the source's `largest_gap`"),
        ({"margin": 10}, {"largest_gap": 9}, "field 'margin' is 10, not within the source's largest_gap 9"),
        ({"margin": 2, "gap": 0.5}, {"largest_gap": 9}, "fields gap and margin both define the gap"),
        ({"score_chosen": 9}, {"largest_gap": 9}, "field 'score_chosen' is given without the other completion's score"),
        (
            {"score_chosen": "good", "score_rejected": 1},
            {"largest_gap": 9},
            "field 'score_chosen' is 'good', not a number",
        ),
        ({"score_chosen": 99, "score_rejected": 1}, {"largest_gap": 9}, "differ by 98, more than 9"),
        ({"score_chosen": [1, 2], "score_rejected": 1}, {"largest_gap": 9}, "has 2 numbers for 1 completions"),
        ({"tools": [{"name": "search"}]}, {}, "field 'tools' is not supported and would change the training"),
        (
            {"weight": 2},
            {},
            r"field 'weight' is not supported and would change.*fields: \{weight: null\}` \(`--field weight=`",
        ),
        ({"chosen": 3}, {}, "field 'chosen' is of another shape .int., not a text, a list of messages"),
        ({"rejected": []}, {}, "field 'rejected' is an empty list, not a text"),
        ({"chosen": [GOOD]}, {}, "fields 'chosen' and 'rejected' have different shapes: messages, text"),
        ({"prompt": None}, {}, "field 'prompt' is missing, and 'chosen' has completions without a prompt"),
        (
            {"prompt": None, "chosen": tiny.dialogue("a", "b"), "rejected": tiny.dialogue("a", "c")},
            {},
            "has completions without a prompt; use `format: hh`",
        ),
        (
            {"prompt": "Else?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            {},
            "'prompt' is not the beginning of 'chosen'",
        ),
        (
            {"chosen": tiny.dialogue("Flat tyre?", "b"), "rejected": tiny.dialogue("Flat tyre?", "c")},
            {},
            "holds the dialogue that 'prompt' is a part of; use `format: hh`",
        ),
        (
            {"prompt": None, "chosen": [USER, None, GOOD], "rejected": [USER, BAD]},
            {},
            "field 'chosen' is a list with a null in it",
        ),
        ({"prompt": [USER | {"weight": 0}]}, {}, "field 'prompt': 'weight' of a message says that it is not learned"),
        ({"chosen": [USER, GOOD | {"content": None}], "rejected": [USER, BAD]}, {}, "with 'role' and 'content', both"),
        (
            {"chosen": [USER, GOOD | {"tool_calls": [{"id": 1}]}], "rejected": [USER, BAD]},
            {},
            "'tool_calls' of a message would be lost",
        ),
        ({"question": 5}, {"fields": {"prompt": "question"}}, r"field 'prompt' \(mapped from question\) is neither"),
    ],
)
def test_what_cannot_be_read_is_reported_by_line_field_and_remedy(
    row: dict[str, Any], source: dict[str, Any], message: str, tmp_path: Path
) -> None:
    good = SHAPES["TRL, explicit"]
    with pytest.raises(RecordError, match=rf"a\.jsonl\.gz:2: .*({message})"):
        read(tmp_path, [good | dict.fromkeys(row.keys() & {"question"}, "Why?"), good | row], **source)


def test_a_field_that_a_row_does_not_have_is_reported(tmp_path: Path) -> None:
    with pytest.raises(
        RecordError, match=r":1: field 'best', which `fields` .* names, is missing; the row has prompt, chosen, r"
    ):
        read(tmp_path, [SHAPES["TRL, explicit"]], fields={"chosen": "best"})


@pytest.mark.parametrize("fields", [{"margin": None}, {"weight": None}])
def test_null_leaves_a_field_out(fields: dict[str, None], tmp_path: Path) -> None:
    row = SHAPES["TRL, explicit"] | dict.fromkeys(fields, 2)
    assert read(tmp_path, [row], fields=fields).records == [EXPECTED]


def test_what_teaches_nothing_is_dropped_and_counted(tmp_path: Path) -> None:
    again = [USER, BAD, USER]
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": "a", "chosen": "b", "rejected": " \n"},
        {"chosen": [USER, GOOD, USER, GOOD], "rejected": [*again, BAD]},
        {"chosen": [USER, GOOD, USER], "rejected": [USER, BAD, USER]},
        {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 2, "score_rejected": 4},
        SHAPES["TRL, explicit"],
    ]
    found = read(tmp_path, rows, largest_gap=9)
    assert found.records == [EXPECTED]
    assert found.dropped == {
        "set: chosen and rejected are equal": 1,
        "set: empty completion": 1,
        "set: chosen and rejected differ before the last message": 1,
        "set: does not end with the assistant": 1,
        "set: the ratings favor rejected": 1,
    }
    assert "set: empty completion: 1 dropped" in found.report_lines()


def test_a_system_field_comes_before_the_prompt(tmp_path: Path) -> None:
    found = read(tmp_path, [SHAPES["TRL, explicit"] | {"system": "Be brief."}])
    assert found.records[0].prompt == (Message("system", "Be brief."), *ASKED)
    assert found.records[0].group == "flat tyre"
    assert "system message from 'system': text" in found.understood["set"]


def test_every_kind_of_file_is_read_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    folder, row = tmp_path / "set", SHAPES["UltraFeedback"]
    folder.mkdir()
    (folder / "a.jsonl").write_text(f"\n{json.dumps(row)}\r\n  \n{json.dumps(row)}\n\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    (folder / "c.json").write_text(json.dumps([row, row], indent=1))
    (folder / "d.json").write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")  # lines under the name of a list
    Dataset.from_list([row]).to_parquet(folder / "e-00000-of-00001.parquet")
    (folder / "dataset_info.json").write_text("{}")
    found = read_rankings(tmp_path, [Source(name="set", format="preferences")])
    assert found.records == [EXPECTED] * 8


def test_a_broken_line_behind_a_blank_one_is_reported_by_its_own_number(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(RecordError, match=r"x\.jsonl:3: Expecting value"):
        list(read_file_rows(tmp_path / "x.jsonl"))


def test_a_file_that_is_not_parquet_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(RecordError, match=r"x\.parquet: .*[Pp]arquet"):
        list(read_file_rows(tmp_path / "x.parquet"))


def test_policies_are_asked_the_prompts_of_a_preference_set(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "set" / "a.jsonl.gz", [SHAPES["Skywork"], SHAPES["UltraFeedback"]])
    found = read_prompts(tmp_path, [Source(name="set", format="preferences")])
    assert found.records == [Prompt("set", "flat tyre", ASKED)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"format": "pairs"}, "'pairs' is called 'preferences' now"),
        ({"format": "hh", "fields": {"prompt": "q"}}, "fields is for preferences, rankings"),
        (
            {"format": "preferences", "fields": {"promt": "q"}},
            "promt is not a field of preferences; its fields are prompt, chosen",
        ),
        ({"format": "preferences", "fields": {"prompt": ["a", "b"]}}, "prompt must name one field"),
        ({"format": "labels", "largest_gap": 2}, "largest_gap is for format preferences"),
    ],
)
def test_a_source_that_cannot_be_meant_is_refused(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Source.model_validate({"name": "set"} | source)


TEXTS = st.text(min_size=1, max_size=12).filter(lambda text: text.strip() and text.isprintable())


@given(
    turns=st.lists(TEXTS, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1), better=TEXTS, worse=TEXTS
)
def test_the_shapes_agree_on_any_conversation(
    turns: list[str], better: str, worse: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same conversation with an explicit, an implicit and a doubled prompt is the same ranking."""
    prompt = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    replies = {name: {"role": "assistant", "content": text} for name, text in (("chosen", better), ("rejected", worse))}
    whole = {name: [*prompt, reply] for name, reply in replies.items()}
    rows = [
        {"prompt": prompt} | {name: [reply] for name, reply in replies.items()},
        {"prompt": prompt, "chosen": better, "rejected": worse},
        whole,
        whole | {"prompt": prompt},
    ]
    filler = {"prompt": "x", "chosen": "a", "rejected": "b"}
    found = read(tmp_path_factory.mktemp("any"), [*rows, filler])
    assert len(found.records) == (1 if better == worse else 5)
    assert len(set(found.records[:-1])) == (0 if better == worse else 1)


def test_a_run_tells_what_it_understood_and_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "question": [{"role": "user", "content": f"q {i}?"}],
            "best": "a fox jumps",
            "worst": "a dog",
            "margin": i % 3,
            "source": "ours",
        }
        for i in range(40)
    ]
    fields = {"prompt": "question", "chosen": "best", "rejected": "worst"}
    sources = [{"name": "set", "format": "preferences", "fields": fields, "largest_gap": 3}]
    tiny.write_rows(tmp_path / "data" / "set" / "a.jsonl.gz", rows)
    objective = {"kind": "preference", "margin": {"kind": "labelled", "scale": 1.5}}
    changes: dict[str, Any] = {"sources": sources, "split": {"held_out": 0.2}, "objective": objective}
    path = tiny.write_config(tmp_path / "run.yaml", tiny.save_base(tmp_path / "base"), **changes)
    run(path, tmp_path / "data", tmp_path / "out")
    reported = "set: 40 rows; ignored: source; chosen from 'chosen' (mapped from best): text; rejected from 'rejected'"
    assert reported in capsys.readouterr().err
    understood = json.loads((tmp_path / "out" / "render.json").read_text())["understood"]["set"]
    assert understood["gap from 'margin', as a share of 3"] == 40
