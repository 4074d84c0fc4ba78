"""Steps from records to records, with the counts and weights of the data of [CRS] section 5.3."""

import random
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest

from assay_service.scoring.item import Item, Message
from assay_training.algorithms.adjustment import adjust_label
from assay_training.config import mixture as steps
from assay_training.config.base import ConfigError
from assay_training.data.mixture import (
    augment,
    draw_mismatched,
    draw_portion,
    mix,
    over_sample,
    repeat,
    under_sample,
    weight_extremes,
    weight_low,
)
from assay_training.records.paraphrases import Paraphrase, read_paraphrases
from assay_training.records.record import Judged, Labelled, RecordError
from assay_training.records.rows import Row, read_json_lines
from tests.training import tiny

LOW, MID, HIGH = 4104, 26961, 7787  # of the 38,852 rows of [CRS]


def record(source: str, number: int, label: float) -> Labelled:
    return Labelled(source, f"{source} {number}", Item.of(f"{source} question {number}", f"answer {number}"), label)


RECORDS: list[Judged] = [record(source, i, i / 100) for source in ("a", "b") for i in range(100)]


@pytest.fixture(scope="module")
def published() -> list[Judged]:
    """As many rows of each bucket as [CRS] has, the mid ones spread evenly."""
    labels = [0.2] * LOW + [0.95] * HIGH + [0.405 + 0.49 * i / MID for i in range(MID)]
    return [record("oasst", i, label) for i, label in enumerate(labels)]


def draw(seed: int = 0) -> random.Random:
    return random.Random(seed)


def buckets(records: list[Judged]) -> tuple[int, int, int]:
    labels = [r.label for r in records if isinstance(r, Labelled)]
    return sum(x <= 0.4 for x in labels), sum(0.4 < x < 0.9 for x in labels), sum(x >= 0.9 for x in labels)


def low_weight(records: list[Judged]) -> float:
    (weight,) = {r.weight for r in records if isinstance(r, Labelled) and r.label <= 0.4}
    assert {r.weight for r in records if isinstance(r, Labelled) and r.label > 0.4} == {1.0}
    return weight


def test_over_sampling_doubles_the_low_rows(published: list[Judged]) -> None:
    assert len(published) == 38_852
    mixed = over_sample(published, draw())
    assert len(mixed) == 42_956
    assert buckets(mixed) == (8208, MID, HIGH)
    assert set(mixed) <= set(published)
    times = Counter(r for r in mixed if isinstance(r, Labelled) and r.label <= 0.4)
    assert 0.84 < len(times) / LOW < 0.89  # drawn with replacement: 1 - e^-2 of them occur


def test_low_rows_have_the_published_weight(published: list[Judged]) -> None:
    """N / N_low is 42956 / 8208 = 5.23; half of it 2.617, three quarters 3.925."""
    sampled = over_sample(published, draw())
    assert low_weight(weight_low(sampled, 1.0)) == pytest.approx(5.2334, abs=1e-4)
    assert low_weight(weight_low(sampled, 0.5)) == pytest.approx(2.6167, abs=1e-4)
    assert low_weight(weight_low(sampled, 0.75)) == pytest.approx(3.9251, abs=1e-4)


def test_augmenting_and_under_sampling_give_the_published_mix(published: list[Judged]) -> None:
    """23,995 rows, 8,208 of them low; the weight is 2.923 · 0.75 = 2.193."""
    low = [r for r in published if isinstance(r, Labelled) and r.label <= 0.4]
    file = PurePosixPath("paraphrases.jsonl.gz")
    paraphrases = {file: {r.item: Paraphrase(f"{r.item.completion} again", 0.9) for r in low}}
    mixture: list[steps.Step] = [
        steps.Augment(step="augment", file=file),
        steps.UnderSample(step="under_sample", rows=8000),
        steps.WeightLow(step="weight_low", share=0.75),
    ]
    mixed = mix(published, mixture, paraphrases, seed=123)
    assert (len(mixed), buckets(mixed)) == (23_995, (8208, 8000, HIGH))
    assert low_weight(mixed) == pytest.approx(2.1925, abs=1e-4)


@pytest.mark.parametrize("rows", [8000, 16000])
def test_under_sampling_takes_equally_many_of_five_ranges(rows: int, published: list[Judged]) -> None:
    mixed = under_sample(published, rows, draw())
    assert buckets(mixed) == (LOW, rows, HIGH)
    mid = [r.label for r in mixed if isinstance(r, Labelled) and 0.4 < r.label < 0.9]
    ends = [(0.4, 0.5), (0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9)]
    assert [sum(a < x <= b for x in mid) for a, b in ends] == [rows // 5] * 5
    assert len(set(mixed)) == len(mixed)


@pytest.mark.parametrize(("label", "range_"), [(0.5, 0), (0.6, 1), (0.7, 2), (0.8, 3), (0.41, 0), (0.89, 4)])
def test_a_label_at_an_end_is_in_the_range_below(label: float, range_: int) -> None:
    """(0.4, 0.5] … as floats: 0.4 + 0.1 · 2 is not 0.6."""
    others = [0.45, 0.55, 0.65, 0.75, 0.85]
    del others[range_]
    records: list[Judged] = [record("a", i, x) for i, x in enumerate([*others, label])]
    assert len(under_sample(records, 5, draw())) == 5


def test_too_few_rows_to_under_sample_are_reported_with_their_range() -> None:
    with pytest.raises(ConfigError, match=r"needs 1600 labels in \(0.4, 0.5\], but there are 20"):
        under_sample(RECORDS, 8000, draw())


@pytest.mark.parametrize(
    ("label", "similarity", "adjusted"), [(0.333, 0.468, 0.20), (0.25, 0.68, 0.17), (0.1, -1.0, 0.0), (0.4, 1.0, 0.4)]
)
def test_algorithm_1(label: float, similarity: float, adjusted: float) -> None:
    """The first two are [CRS] table 4."""
    assert adjust_label(label, similarity) == pytest.approx(adjusted, abs=1e-3)


def test_a_paraphrase_is_added_beside_its_original_with_its_own_label() -> None:
    original, other = record("a", 1, 0.25), record("a", 2, 0.8)
    paraphrases = {original.item: Paraphrase("reworded", 0.68), other.item: Paraphrase("never", 1.0)}
    kept, high, made = augment([original, other], paraphrases)
    assert (kept, high) == (original, other)
    assert isinstance(made, Labelled)
    assert (made.source, made.group) == (original.source, original.group)
    assert made.label == pytest.approx(0.17, abs=1e-3)
    assert made.item == Item.of("a question 1", "reworded")
    with pytest.raises(ConfigError, match="no paraphrase of a low labelled item"):
        augment([record("a", 3, 0.1)], paraphrases)


def test_paraphrases_are_read_and_another_language_counts_as_unlike(tmp_path: Path) -> None:
    row = {"prompt": "q", "completion": "c", "paraphrase": "p", "similarity": 0.9}
    file = tiny.write_rows(tmp_path / "p.jsonl.gz", [row, row | {"completion": "d", "same_language": False}])
    read = read_paraphrases(read_json_lines(file))
    assert read == {Item.of("q", "c"): Paraphrase("p", 0.9), Item.of("q", "d"): Paraphrase("p", 0.2)}
    with pytest.raises(RecordError, match="f:2: the item has a paraphrase already"):
        read_paraphrases([Row("f:1", "f", row), Row("f:2", "f", row)])
    with pytest.raises(RecordError, match=r"f:1: field 'similarity' is 1\.5"):
        read_paraphrases([Row("f:1", "f", row | {"similarity": 1.5})])


def test_extremes_weigh_a_constant(published: list[Judged]) -> None:
    weights = Counter(r.weight for r in weight_extremes(published, 1.4) if isinstance(r, Labelled))
    assert weights == {1.4: LOW + HIGH, 1.0: MID}


@pytest.mark.parametrize(("share", "drawn"), [(0.5, 100), (0.1, 11), (0.25, 33)])
def test_a_portion_is_a_share_of_the_result(share: float, drawn: int) -> None:
    """Llama-2's helpfulness mix has an equal part of other data, its safety mix a tenth ([Llama 2] section 3.2.2)."""
    mixed = draw_portion(RECORDS, ["b"], share, draw())
    assert Counter(r.source for r in mixed) == {"a": 100, "b": drawn}
    assert len(set(mixed)) == len(mixed)


def test_a_portion_larger_than_its_sources_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"a share of 0\.6 needs 150 records, but the sources have 100"):
        draw_portion(RECORDS, ["b"], 0.6, draw())


def test_mismatched_items_pair_a_prompt_with_a_foreign_answer_of_its_own_source() -> None:
    made = draw_mismatched(RECORDS, 1.0, draw(1))
    assert 180 <= len(made) <= 200  # a draw of the item itself makes none
    for twin in made:
        (prompt,) = twin.item.prompt
        number = twin.group.split()[1]
        assert (twin.label, prompt.content) == (0.0, f"{twin.source} question {number}")
        assert twin.item.completion != f"answer {number}"


def test_an_answer_that_two_questions_share_is_not_a_mismatch() -> None:
    records: list[Judged] = [Labelled("a", f"q{i}", Item.of(f"q{i}", f"answer {i // 2}"), 1.0) for i in range(4)]
    for seed in range(20):
        for twin in draw_mismatched(records, 1.0, draw(seed)):
            assert twin.item.completion != f"answer {int(twin.group[1]) // 2}"


def test_the_share_is_kept_and_the_draw_is_seeded() -> None:
    made = draw_mismatched(RECORDS, 0.5, draw(1))
    assert 70 <= len(made) <= 130
    assert made == draw_mismatched(RECORDS, 0.5, draw(1))
    assert made != draw_mismatched(RECORDS, 0.5, draw(2))


def times_of(source: str, times: dict[str, float]) -> int:
    one = record(source, 1, 1.0)
    return repeat([one, record("hh_rlhf/harmless-base", 2, 1.0), record("hh_rlhf/x", 3, 1.0)], times).count(one)


@pytest.mark.parametrize(
    ("source", "times"), [("hh_rlhf/harmless-base", 3), ("hh_rlhf/helpful-base", 2), ("feedbackqa", 1)]
)
def test_a_subset_goes_before_its_data_set(source: str, times: int) -> None:
    assert times_of(source, {"hh_rlhf/harmless-base": 3, "hh_rlhf": 2}) == times


def test_a_repeat_of_one_and_a_half_doubles_half_of_the_groups_and_always_the_same() -> None:
    times = Counter(r.group for r in repeat(RECORDS, {"a": 2.5}) if r.source == "a")
    assert set(times.values()) == {2, 3}
    assert 35 <= list(times.values()).count(3) <= 65
    assert times == Counter(r.group for r in repeat(RECORDS[:100], {"a": 2.5}))


def test_naming_what_there_is_not_is_an_error() -> None:
    with pytest.raises(ConfigError, match="repeat: 'a/c' is not a source of this run; its sources are a, b"):
        repeat(RECORDS, {"a/c": 2})
    with pytest.raises(ConfigError, match="portion: 'c' is not a source of this run; its sources are a, b"):
        draw_portion(RECORDS, ["c"], 0.5, draw())


@pytest.mark.parametrize("step", ["over_sample", "augment", "weight_low"])
def test_a_step_for_low_rows_needs_some(step: str) -> None:
    high: list[Judged] = [record("a", 1, 0.9)]
    with pytest.raises(ConfigError, match=f"{step}: no labelled item has a label of at most 0"):
        {"over_sample": lambda: over_sample(high, draw()), "augment": lambda: augment(high, {}),
         "weight_low": lambda: weight_low(high, 0.5)}[step]()  # fmt: skip


def test_a_mixture_is_the_same_for_the_same_seed_and_its_steps_draw_apart() -> None:
    mixture: list[steps.Step] = [
        steps.OverSample(step="over_sample"),
        steps.Portion(step="portion", sources=["b"], share=0.25),
        steps.Mismatched(step="mismatched", share=0.5),
        steps.Repeat(step="repeat", times={"a": 2}),
        steps.WeightExtremes(step="weight_extremes", weight=1.4),
    ]
    mixed = mix(RECORDS, mixture, {}, seed=1)
    assert mixed == mix(RECORDS, mixture, {}, seed=1)
    assert mixed != mix(RECORDS, mixture, {}, seed=2)
    assert mix(RECORDS, [], {}, seed=1) == RECORDS


def test_only_some_sources_are_kept() -> None:
    assert {r.source for r in mix(RECORDS, [steps.Keep(step="keep", sources=["b"])], {}, seed=1)} == {"b"}
    with pytest.raises(ConfigError, match="keep: 'c' is not a source"):
        mix(RECORDS, [steps.Keep(step="keep", sources=["c"])], {}, seed=1)


def test_a_smaller_sample_is_part_of_a_larger_one_and_groups_stay_whole() -> None:
    doubled = [*RECORDS, *RECORDS]
    few, many = (mix(doubled, [steps.Sample(step="sample", share=share)], {}, seed=1) for share in (0.25, 0.5))
    assert 70 <= len(few) <= 130
    assert 160 <= len(many) <= 240
    assert set(few) < set(many)
    assert set(Counter(r.group for r in many).values()) == {2}


def test_proportions_are_kept_by_the_scarcest_bucket(published: list[Judged]) -> None:
    step = steps.Proportions(step="proportions", low=0.25, high=0.25)
    assert buckets(mix(published, [step], {}, seed=1)) == (LOW, 2 * LOW, LOW)
    natural = steps.Proportions(step="proportions", low=0.11, high=0.2)
    low, mid, high = buckets(mix(RECORDS, [natural], {}, seed=1))  # 82, 98 and 20 of 200 records
    assert (low, mid, high) == (11, 69, 20)
    with pytest.raises(ValueError, match="the sum of low and high must be below 1"):
        steps.Proportions(step="proportions", low=0.5, high=0.5)


def test_a_paraphrase_belongs_to_the_answer_in_its_dialogue() -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Why"},
    ]
    row = {"prompt": turns, "completion": "No.", "paraphrase": "Nope.", "similarity": 1.0}
    messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    low = Labelled("x", "hi", Item((*messages, Message("assistant", "No."))), 0.3)
    _, made = augment([low], read_paraphrases([Row("here", "x", row)]))
    assert isinstance(made, Labelled)
    assert made.item == Item((*messages, Message("assistant", "Nope.")))
