"""Data sets beyond pairs and ratings: message trees, instructions, comparisons with ties, and our own JSON lines."""

import json
from pathlib import Path
from typing import Any

import pytest

from assay_service.scoring.item import Item, Message
from assay_training.config.data import Source
from assay_training.records.record import Dialogue, Judged, Labelled, Pair, Ranking, RecordError, Spoken, Text
from assay_training.records.rows import Row, read_hub_rows
from assay_training.records.sources import hash_data, read_labelled, read_rankings, read_spoken
from tests.training import tiny


def source(format_: str, **options: Any) -> list[Source]:
    return [Source.model_validate({"name": "set", "format": format_} | options)]


def write(data: Path, rows: list[Any], file: str = "x.jsonl.gz") -> Path:
    tiny.write_rows(data / "set" / file, rows)
    return data


def rankings(data: Path, format_: str, rows: list[Any], **options: Any) -> list[Judged]:
    return read_rankings(write(data, rows), source(format_, **options)).records


def labelled(data: Path, format_: str, rows: list[Any], **options: Any) -> list[Judged]:
    return read_labelled(write(data, rows), source(format_, **options)).records


def spoken(data: Path, format_: str, rows: list[Any], **options: Any) -> list[Spoken]:
    return read_spoken(write(data, rows), source(format_, **options)).records


def message(id_: str, parent: str | None, role: str, text: str, **fields: Any) -> dict[str, Any]:
    """A row of a message-tree export."""
    row = {"message_id": id_, "parent_id": parent, "role": role, "text": text, "lang": "en", "rank": None}
    tree = {"message_tree_id": "tree", "tree_state": "ready_for_export", "deleted": False, "labels": None}
    return row | tree | fields


def quality(value: float, **others: float) -> dict[str, list[Any]]:
    values = {"quality": value} | others
    return {"name": list(values), "value": list(values.values()), "count": [3] * len(values)}


TREE = [
    message("q", None, "prompter", "How?"),
    message("a", "q", "assistant", "Second.", rank=1, labels=quality(0.5, toxicity=0.25)),
    message("b", "q", "assistant", "Best.", rank=0, labels=quality(1.0, toxicity=0.0)),
    message("c", "q", "assistant", "Unranked."),
    message("d", "q", "assistant", "Deleted.", rank=2, deleted=True),
    message("e", "b", "prompter", "And then?", rank=0),
    message("f", "e", "assistant", "Also second.", rank=1),
    message("g", "e", "assistant", "Also best.", rank=0),
    message("h", "g", "prompter", "Thanks."),
]
QUESTION = (Message("user", "How?"),)
LATER = (*QUESTION, Message("assistant", "Best."), Message("user", "And then?"))


def test_sibling_ranks_of_a_tree_are_rankings(tmp_path: Path) -> None:
    assert rankings(tmp_path, "oasst", TREE) == [
        Ranking("set/en", "how", QUESTION, ("Best.", "Second."), (Pair(0, 1),)),
        Ranking("set/en", "how", LATER, ("Also best.", "Also second."), (Pair(0, 1),)),
    ]


def test_of_more_than_four_replies_the_best_four_count(tmp_path: Path) -> None:
    rows = [TREE[0], *(message(str(i), "q", "assistant", f"reply {i}", rank=i) for i in reversed(range(6)))]
    (record,) = rankings(tmp_path, "oasst", rows)
    assert isinstance(record, Ranking)
    assert record.completions == ("reply 0", "reply 1", "reply 2", "reply 3")
    assert len(record.pairs) == 6


def test_labels_of_a_tree_are_labelled_items(tmp_path: Path) -> None:
    """A reply without the label is dropped (774 rows of the data of [CRS])."""
    assert labelled(tmp_path, "oasst", TREE) == [
        Labelled("set/en", "how", Item((*QUESTION, Message("assistant", "Second."))), 0.5),
        Labelled("set/en", "how", Item((*QUESTION, Message("assistant", "Best."))), 1.0),
    ]


def test_several_labels_are_summed_by_weight_and_what_is_below_zero_is_dropped(tmp_path: Path) -> None:
    rows = [*TREE, message("i", "q", "assistant", "Vile.", labels=quality(0.0, toxicity=1.0))]
    found = labelled(tmp_path, "oasst", rows, labels={"quality": 0.8, "toxicity": -0.2})
    assert [record.label for record in found if isinstance(record, Labelled)] == pytest.approx([0.35, 0.8])


def test_the_thread_of_a_tree_follows_the_best_replies_to_the_assistants_last_turn(tmp_path: Path) -> None:
    (record,) = spoken(tmp_path, "oasst", TREE)
    assert record == Dialogue("set/en", "how", (*LATER, Message("assistant", "Also best.")))


def test_whole_trees_are_read_like_their_messages(tmp_path: Path) -> None:
    def nested(id_: str) -> dict[str, Any]:
        own = next(dict(row) for row in TREE if row["message_id"] == id_)
        for key in ("message_tree_id", "tree_state", "parent_id"):
            del own[key]
        if own["labels"]:
            own["labels"] = {
                n: {"value": v, "count": 3} for n, v in zip(own["labels"]["name"], own["labels"]["value"], strict=True)
            }
        return own | {"replies": [nested(row["message_id"]) for row in TREE if row["parent_id"] == id_]}

    tree = {"message_tree_id": "tree", "tree_state": "ready_for_export", "prompt": nested("q")}
    assert rankings(tmp_path / "a", "oasst", [tree]) == rankings(tmp_path / "b", "oasst", TREE)
    assert labelled(tmp_path / "a", "oasst", [tree]) == labelled(tmp_path / "b", "oasst", TREE)
    assert spoken(tmp_path / "a", "oasst", [tree]) == spoken(tmp_path / "b", "oasst", TREE)


@pytest.mark.parametrize("changes", [{"lang": "de"}, {"tree_state": "growing"}])
def test_trees_in_other_languages_or_unfinished_are_dropped(changes: dict[str, str], tmp_path: Path) -> None:
    other = [row | changes | {"message_tree_id": "other"} for row in TREE]
    renamed = [
        row | {"message_id": f"{row['message_id']}2", "parent_id": row["parent_id"] and f"{row['parent_id']}2"}
        for row in other
    ]
    assert len(rankings(tmp_path, "oasst", [*TREE, *renamed])) == 2


def test_languages_are_chosen_and_named(tmp_path: Path) -> None:
    german = [row | {"lang": "de"} for row in TREE]
    records = rankings(tmp_path, "oasst", german, languages=["de", "fr"])
    assert {record.source for record in records} == {"set/de"}


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (message("x", "q", "bot", "?"), "'role'"),
        (message("x", "q", "assistant", "?", rank="first"), "'rank'"),
        (message("x", "q", "assistant", "?", labels=[0.5]), "'labels'"),
        (message("x", "q", "assistant", "?", labels={"quality": 0.5}), "'labels'"),
        (message("x", "q", "assistant", "?") | {"text": None}, "'text'"),
        (message("x", "q", "assistant", " "), "'text' is empty"),
        (message("x", "q", "assistant", "?", labels=quality(float("nan"))), "'labels': 'quality' is nan, not in 0..1"),
        (message("x", "q", "assistant", "?", labels=quality(7.0)), "'labels': 'quality' is 7.0, not in 0..1"),
        (message("x", "q", "assistant", "?", labels=quality(True)), "'labels': 'quality' is not a number"),
        (message("x", "q", "assistant", "?", labels={"quality": {"value": "0.5"}}), "'labels': 'quality' is not a num"),
        (message("x", "q", "assistant", "?", rank=-1), "'rank' is -1; ranks begin at 0"),
        (message("x", "x", "assistant", "?", rank=0), "'parent_id': the message is its own ancestor"),
        (message("q", "q", "assistant", "?"), "'message_id': 'q' occurs twice"),
        (message("x", "absent", "assistant", "?"), "'parent_id': no message has the id 'absent'"),
        (message("x", "q", "assistant", "?") | {"parent_id": ["q"]}, "'parent_id' is not a str"),
    ],
)
def test_a_malformed_message_is_reported(row: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=f"x.jsonl.gz:2: field {field}"):
        rankings(tmp_path, "oasst", [TREE[0], row])


@pytest.mark.parametrize("replies", ["none", [None], {"a": 1}])
def test_a_tree_whose_replies_are_not_messages_is_reported(replies: Any, tmp_path: Path) -> None:
    tree = {"message_tree_id": "tree", "tree_state": "ready_for_export", "prompt": TREE[0] | {"replies": replies}}
    with pytest.raises(RecordError, match=r"x.jsonl.gz:1: field 'replies' is not a list of messages"):
        rankings(tmp_path, "oasst", [tree])


def test_trees_that_begin_alike_are_one_group(tmp_path: Path) -> None:
    """Else one prompt could be learned and tested on."""
    renamed = [
        row | {"message_id": f"{row['message_id']}2", "parent_id": row["parent_id"] and f"{row['parent_id']}2"}
        for row in TREE
    ]
    assert {record.group for record in rankings(tmp_path, "oasst", [*TREE, *renamed])} == {"how"}


def test_a_circle_of_messages_is_reported_and_what_is_deleted_does_not_count(tmp_path: Path) -> None:
    circle = [message("x", "y", "prompter", "?"), message("y", "x", "assistant", "!", rank=0)]
    with pytest.raises(RecordError, match=r"x.jsonl.gz:10: field 'parent_id': the message is its own ancestor"):
        rankings(tmp_path, "oasst", [*TREE, *circle])
    gone = [message("x", "absent", "assistant", "?", deleted=True), message("y", "x", "prompter", "!")]
    assert rankings(tmp_path, "oasst", [*TREE, *gone]) == rankings(tmp_path, "oasst", TREE)


def test_a_tree_may_be_of_any_depth(tmp_path: Path) -> None:
    roles = ("prompter", "assistant")
    rows = [message(str(i), str(i - 1) if i else None, roles[i % 2], f"turn {i}", rank=0) for i in range(1500)]
    (record,) = spoken(tmp_path, "oasst", rows)
    assert isinstance(record, Dialogue)
    assert len(record.messages) == 1500
    assert record.messages[-1] == Message("assistant", "turn 1499")


def test_prompts_whose_replies_cannot_be_compared_are_counted_and_ties_stay(tmp_path: Path) -> None:
    rows = [
        message("q", None, "prompter", "How?"),
        message("a", "q", "assistant", "So.", rank=0),
        message("b", "q", "assistant", "Thus.", rank=0),
        message("c", "a", "prompter", "And then?"),
        message("d", "c", "assistant", "Alone.", rank=0),
        message("e", "d", "prompter", "Equal?"),
        message("f", "e", "assistant", "Same.", rank=0),
        message("g", "e", "assistant", "Same.", rank=1),
        message("h", "f", "prompter", "Nobody answers."),
    ]
    found = read_rankings(write(tmp_path, rows), source("oasst"))
    assert found.records == [Ranking("set/en", "how", QUESTION, ("So.", "Thus."), (), ((0, 1),))]
    assert found.dropped == {"set: fewer than two ranked completions": 1, "set: a pair of equal completions": 1}


def test_a_misspelled_label_is_reported_with_what_was_dropped_for_it(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"sources: set: no labelled items in the source \(set: no label 'qualty'\)"):
        labelled(tmp_path, "oasst", TREE, labels={"qualty": 1.0})


def test_what_is_dropped_of_published_sets_is_counted(tmp_path: Path) -> None:
    data = write(tmp_path, [arena(10, "a"), arena(1, "b"), arena(5, " "), arena(None, "c")])
    assert read_rankings(data, source("arena_bench")).dropped == {"set: empty completion": 1, "set: no score": 1}
    data = write(tmp_path / "b", [{"instruction": "Hi.", "output": ""}, {"instruction": "Hi.", "output": "Hello."}])
    assert read_spoken(data, source("alpaca")).dropped == {"set: empty completion": 1}


ANSWERS = {f"prediction {i}": f"answer {i}" for i in range(1, 5)}


def test_comparisons_of_four_answers_with_ties(tmp_path: Path) -> None:
    """1v2 tie, 1 over 3, 4 over 1, 2 over 3, 2v4 tie, 4 over 3."""
    (record,) = rankings(tmp_path, "qa_feedback", [{"question": "Q?", **ANSWERS, "preference": [0, 1, 2, 1, 0, 2]}])
    assert isinstance(record, Ranking)
    assert record.completions == ("answer 1", "answer 2", "answer 3", "answer 4")
    assert {(pair.better, pair.worse) for pair in record.pairs} == {(0, 2), (3, 0), (1, 2), (3, 2)}
    assert record.ties == ((0, 1), (1, 3))
    with pytest.raises(RecordError, match="'preference' is not a list of 6 numbers 0, 1 or 2"):
        rankings(tmp_path, "qa_feedback", [{"question": "Q?", **ANSWERS, "preference": [0, 1, 2]}])


def arena(score: Any, answer: str) -> dict[str, Any]:
    return {"prompt": "Q?", "answer": answer, "score": score}


def test_scores_from_one_to_ten_are_qualities_gaps_and_ties(tmp_path: Path) -> None:
    rows = [arena(10, "a"), arena(None, "unscored"), arena(1, "b"), arena(5.5, "c"), arena(1, "d")]
    (record,) = rankings(tmp_path, "arena_bench", rows)
    assert isinstance(record, Ranking)
    assert record.completions == ("a", "b", "c", "d")
    assert {(p.better, p.worse): p.gap for p in record.pairs} == {
        (0, 1): 1.0, (0, 2): 0.5, (0, 3): 1.0, (2, 1): 0.5, (2, 3): 0.5
    }  # fmt: skip
    assert record.ties == ((1, 3),)
    assert [r.label for r in labelled(tmp_path, "arena_bench", rows) if isinstance(r, Labelled)] == [1.0, 0.0, 0.5, 0.0]
    for score in (0, 11, "7", True):
        with pytest.raises(RecordError, match="field 'score' is not a number from 1 to 10"):
            rankings(tmp_path, "arena_bench", [arena(score, "a")])


def test_two_equal_answers_with_different_ratings_are_not_a_pair(tmp_path: Path) -> None:
    """A model gives both the same logit; the rest of their ranking counts, and so do their labels."""
    rows = [arena(10, "a"), arena(1, "a"), arena(5.5, "b"), arena(1, "b")]
    found = read_rankings(write(tmp_path, rows), source("arena_bench"))
    (record,) = found.records
    assert isinstance(record, Ranking)
    assert {(p.better, p.worse): p.gap for p in record.pairs} == {(0, 2): 0.5, (0, 3): 1.0, (2, 1): 0.5}
    assert record.ties == ((1, 3),)
    assert found.dropped == {"set: a pair of equal completions": 2}
    assert len(labelled(tmp_path, "arena_bench", rows)) == 4
    with pytest.raises(RecordError, match=r"no rankings in the source \(set: a pair of equal completions\)"):
        rankings(tmp_path, "arena_bench", rows[:2])
    same = ANSWERS | {"prediction 3": "answer 1"}
    (record,) = rankings(tmp_path, "qa_feedback", [{"question": "Q?", **same, "preference": [0, 1, 2, 1, 0, 2]}])
    assert isinstance(record, Ranking)
    assert {(pair.better, pair.worse) for pair in record.pairs} == {(3, 0), (1, 2), (3, 2)}


def test_hallucinations_are_the_bad_ones(tmp_path: Path) -> None:
    rows = [{"user_query": "Q?", "chatgpt_response": text, "hallucination": text} for text in ("no", "yes")]
    assert [r.label for r in labelled(tmp_path, "halueval", rows) if isinstance(r, Labelled)] == [1.0, 0.0]


def test_instructions_are_dialogues(tmp_path: Path) -> None:
    alpaca = [
        {"instruction": "Add.", "input": "1 + 1", "output": "2"},
        {"instruction": "Hi.", "input": "", "output": "Hello."},
    ]
    first, second = spoken(tmp_path / "a", "alpaca", alpaca)
    assert isinstance(first, Dialogue)
    assert isinstance(second, Dialogue)
    assert first.messages == (Message("user", "Add.\n\n1 + 1"), Message("assistant", "2"))
    assert second.messages == (Message("user", "Hi."), Message("assistant", "Hello."))
    dolly = [{"instruction": "Name one.", "context": "A, B", "response": "A", "category": "closed_qa"}]
    (only,) = spoken(tmp_path / "b", "dolly", dolly)
    assert isinstance(only, Dialogue)
    assert only.messages == (Message("user", "Name one."), Message("assistant", "A"))


def test_gsm8k_answers_lose_their_calculator_marks_and_its_solutions_are_labelled(tmp_path: Path) -> None:
    rows: list[Any] = [{"question": "How many?", "answer": "2 * 3 = <<2*3=6>>6\n#### 6"}]
    solutions = {"6b": {"solution": "5", "is_correct": False}, "175b": {"solution": "6", "is_correct": True}}
    write(tmp_path, [{"question": "How many?", "ground_truth": "6", **solutions}], "z.jsonl.gz")
    (record,) = spoken(tmp_path, "gsm8k", rows)
    assert isinstance(record, Dialogue)
    assert record.messages[1].content == "2 * 3 = 6\n#### 6"
    assert [(r.item.completion, r.label) for r in labelled(tmp_path, "gsm8k", rows) if isinstance(r, Labelled)] == [
        ("5", 0.0), ("6", 1.0)
    ]  # fmt: skip


def test_our_own_lines(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    messages = (Message("system", "Be brief."), Message("user", "Hi."))
    assert rankings(
        tmp_path, "preferences", [{"prompt": chat, "chosen": "a", "rejected": "b", "gap": 1, "group": "g"}]
    ) == [Ranking("set", "g", messages, ("a", "b"), (Pair(0, 1, 1.0),))]
    assert rankings(tmp_path, "rankings", [{"prompt": "Hi.", "completions": ["a", "b", "c"], "ranks": [2, 1, 2]}]) == [
        Ranking("set", "hi", (Message("user", "Hi."),), ("a", "b", "c"), (Pair(1, 0), Pair(1, 2)), ((0, 2),))
    ]
    assert labelled(tmp_path, "labels", [{"prompt": "Hi.", "completion": "a", "label": 1}]) == [
        Labelled("set", "hi", Item.of("Hi.", "a"), 1.0)
    ]
    said = (*messages, Message("assistant", "Hello."))
    rows = [{"messages": [*chat, {"role": "assistant", "content": "Hello."}]}]
    assert spoken(tmp_path, "dialogues", rows) == [Dialogue("set", "hi", said)]
    one, same, other = spoken(tmp_path, "text", [{"text": "abc"}, {"text": "abc"}, {"text": "x"}])
    assert isinstance(one, Text)
    assert (one.text, one.group == same.group, one.group == other.group) == ("abc", True, False)


@pytest.mark.parametrize(
    ("format_", "row", "message_"),
    [
        ("preferences", {"prompt": "a", "chosen": "b", "rejected": "c", "gap": 1.5}, "field 'gap' is 1.5, not in"),
        ("preferences", {"prompt": 5, "chosen": "b", "rejected": "c"}, "field 'prompt' is neither"),
        ("preferences", {"prompt": [{"role": "user"}], "chosen": "b", "rejected": "c"}, "field 'prompt' is not a list"),
        ("preferences", {"prompt": "a", "chosen": "b"}, "field 'rejected' is missing, not a text, a list of"),
        ("rankings", {"prompt": "a", "completions": ["b"], "ranks": [1]}, "two texts or more"),
        ("rankings", {"prompt": "a", "completions": ["b", "c"], "ranks": [1]}, "field 'ranks'"),
        ("rankings", {"prompt": "a", "completions": ["b", "c"], "ranks": [0, 1]}, "field 'ranks'"),
        ("rankings", {"prompt": "a", "completions": ["b", "c"], "ranks": [1, True]}, "field 'ranks'"),
        ("rankings", {"prompt": "a", "completions": ["b", "c"], "ranks": [2, 2]}, "'ranks': all completions are tied"),
        ("rankings", {"prompt": "a", "completions": ["b", ""], "ranks": [1, 2]}, "none of them empty"),
        ("rankings", {"prompt": "a", "completions": ["b", "b"], "ranks": [1, 2]}, "holds a text twice"),
        (
            "preferences",
            {"prompt": [{"role": "usr", "content": "a"}], "chosen": "b", "rejected": "c"},
            "field 'prompt': role 'usr' is not one of assistant, system, tool, user",
        ),
    ],
)
def test_a_malformed_ranking_of_our_own_is_reported(format_: str, row: Any, message_: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=f"x.jsonl.gz:1: .*{message_}"):
        rankings(tmp_path, format_, [row])


@pytest.mark.parametrize("label", [-0.1, 1.1, "good", None, True])
def test_a_label_outside_its_range_is_reported(label: Any, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"x\.jsonl\.gz:1: field 'label'"):
        labelled(tmp_path, "labels", [{"prompt": "a", "completion": "b", "label": label}])


def test_a_dialogue_in_which_nobody_answers_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no message of the assistant"):
        spoken(tmp_path, "dialogues", [{"messages": [{"role": "user", "content": "a"}]}])
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]
    with pytest.raises(RecordError, match=r"x\.jsonl\.gz:1: .*an empty message of the assistant"):
        spoken(tmp_path, "dialogues", [{"messages": said}])
    with pytest.raises(RecordError, match=r"x\.jsonl\.gz:1: field 'completion' is empty"):
        labelled(tmp_path / "b", "labels", [{"prompt": "a", "completion": "", "label": 1}])


def test_the_chosen_dialogues_of_hh_are_dialogues(tmp_path: Path) -> None:
    rows = [tiny.hh_row("a", "b", "c"), {"chosen": tiny.dialogue("only"), "rejected": "x"}]
    (record,) = spoken(tmp_path, "hh", rows)
    assert isinstance(record, Dialogue)
    assert record.messages == (Message("user", "a"), Message("assistant", "b"))


def test_plain_and_gzipped_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path, [{"text": "second"}], "b.jsonl.gz")
    (tmp_path / "set" / "a.jsonl").write_text('{"text": "first"}\n')
    records = read_spoken(tmp_path, source("text")).records
    assert [record.text for record in records if isinstance(record, Text)] == ["first", "second"]
    assert list(hash_data(tmp_path, source("text"), [])) == ["set/a.jsonl", "set/b.jsonl.gz"]


COMMIT = "0123456789" * 4
PAIR = {"prompt": "Hi.", "chosen": "a", "rejected": "b"}


def publish(folder: Path, files: dict[str, list[Any]], readme: str = "") -> str:
    """A local folder stands in for the hub: the library is the same, and so are its rows."""
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / name).write_text("\n".join(lines) + "\n")
    if readme:
        (folder / "README.md").write_text(readme)
    return str(folder)


def test_a_set_that_datasets_loads_is_read_like_a_file(tmp_path: Path) -> None:
    folder = publish(tmp_path / "published", {"train.jsonl": [PAIR]})
    hub = source("preferences", hub=folder, revision=COMMIT)
    assert read_rankings(tmp_path, hub).records == [
        Ranking("set", "hi", (Message("user", "Hi."),), ("a", "b"), (Pair(0, 1),))
    ]
    assert hash_data(tmp_path, hub, []) == {f"{folder} train": COMMIT}
    (row,) = read_hub_rows(folder, None, None, COMMIT, "train")
    assert (row.where, row.subset) == (f"{folder}@{COMMIT} train:1", "train")


def test_a_set_with_several_configurations_is_read_by_their_name(tmp_path: Path) -> None:
    """As `openai/gsm8k` is laid out."""
    readme = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("main", "socratic"))
    answers = {f"{name}.jsonl": [{"question": "How many?", "answer": name}] for name in ("main", "socratic")}
    folder = publish(tmp_path / "published", answers, f"---\nconfigs:\n{readme}---\n")
    hub = source("gsm8k", hub=folder, hub_config="socratic", revision=COMMIT)
    (record,) = read_spoken(tmp_path, hub).records
    assert isinstance(record, Dialogue)
    assert record.messages[1].content == "socratic"
    assert hash_data(tmp_path, hub, []) == {f"{folder} socratic train": COMMIT}
    with pytest.raises(RecordError, match="Config name is missing"):
        read_spoken(tmp_path, source("gsm8k", hub=folder, revision=COMMIT))


def test_a_folder_of_a_set_is_the_subset(tmp_path: Path) -> None:
    """As `Anthropic/hh-rlhf` is laid out."""
    rows = {f"{name}/train.jsonl": [tiny.hh_row(name, "b", "c")] for name in ("harmless-base", "helpful-base")}
    folder = publish(tmp_path / "published", rows)
    hub = source("hh", hub=folder, hub_dir="harmless-base", revision=COMMIT)
    (record,) = read_rankings(tmp_path, hub).records
    assert (record.source, record.group) == ("set/harmless-base", "harmless base")
    assert hash_data(tmp_path, hub, []) == {f"{folder} harmless-base train": COMMIT}


def test_a_broken_file_of_a_set_is_reported_with_the_set(tmp_path: Path) -> None:
    folder = publish(tmp_path / "published", {"train.jsonl": [*[PAIR] * 20, '{"prompt": broken']})
    with pytest.raises(RecordError, match=rf"{folder}@{COMMIT} train: .*JSON parse error.* in row 20"):
        read_rankings(tmp_path, source("preferences", hub=folder, revision=COMMIT))


def test_a_field_inside_objects_is_named_with_its_way() -> None:
    row = Row("f:1", "f", {"a": {"b": 3}, "t": True})
    assert row.get("a.b", int) == 3
    assert row.get("a.b", float) == 3.0
    for name, kind in (("a.c", int), ("a.b.c", int), ("a.b", str), ("t", int), ("t", float)):
        with pytest.raises(RecordError, match=f"f:1: field '{name}' is not a {kind.__name__}"):
            row.get(name, kind)
