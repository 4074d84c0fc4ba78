"""Steps from records to more records."""

import pytest

from assay_service.scoring.item import Item
from assay_training.config import ConfigError
from assay_training.mixture import check_names, mismatched, times_in_epoch
from assay_training.records import Labelled, Record

RECORDS: list[Record] = [
    Labelled(source, f"{source} {i}", Item.of(f"{source} question {i}", f"{source} answer {i}"), i / 100)
    for source in ("a", "b")
    for i in range(100)
]


def part_of(record: Record) -> int:
    return int(record.group.split()[1]) % 3


def test_mismatched_items_pair_a_prompt_with_a_foreign_answer_of_its_own_source_and_part() -> None:
    made = mismatched(RECORDS, 1.0, part_of, seed=1)
    assert 180 <= len(made) <= 200  # a draw of the item itself makes none
    for record in made:
        (prompt,), completion = record.item.prompt, record.item.completion
        assert record.label == 0.0
        assert prompt.content == f"{record.source} question {record.group.split()[1]}"
        source, _, number = completion.split()
        assert source == record.source
        assert number != record.group.split()[1]
        assert int(number) % 3 == part_of(record)


def test_an_answer_that_two_questions_share_is_not_a_mismatch() -> None:
    records: list[Record] = [Labelled("a", f"q{i}", Item.of(f"q{i}", f"answer {i // 2}"), 1.0) for i in range(4)]
    for seed in range(20):
        for record in mismatched(records, 1.0, lambda _: 0, seed=seed):
            assert record.item.completion != f"answer {int(record.group[1]) // 2}"


def test_the_share_is_kept_and_the_draw_is_seeded() -> None:
    made = mismatched(RECORDS, 0.5, part_of, seed=1)
    assert 70 <= len(made) <= 130
    assert made == mismatched(RECORDS, 0.5, part_of, seed=1)
    assert made != mismatched(RECORDS, 0.5, part_of, seed=2)
    assert mismatched(RECORDS, 0.0, part_of, seed=1) == []


@pytest.mark.parametrize(
    ("source", "times"), [("hh_rlhf/harmless-base", 3), ("hh_rlhf/helpful-base", 2), ("feedbackqa", 1)]
)
def test_a_subset_goes_before_its_data_set(source: str, times: int) -> None:
    record = Labelled(source, "a question", Item.of("a question", "an answer"), 1.0)
    assert times_in_epoch(record, {"hh_rlhf/harmless-base": 3, "hh_rlhf": 2}) == times


def test_a_repeat_of_one_and_a_half_doubles_half_of_the_groups_and_always_the_same() -> None:
    times = [times_in_epoch(record, {"a": 2.5}) for record in RECORDS if record.source == "a"]
    assert set(times) == {2, 3}
    assert 35 <= times.count(3) <= 65
    assert times == [times_in_epoch(record, {"a": 2.5}) for record in RECORDS if record.source == "a"]


def test_repeating_what_there_is_not_is_an_error() -> None:
    check_names({"a": 2, "b": 3}, RECORDS)
    with pytest.raises(ConfigError, match="repeat: 'a/c' is not a source of this run; these are: a, b"):
        check_names({"a/c": 2}, RECORDS)
