"""From rows of logits to the numbers and the sentences of a model card."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay_training.config.base import read
from assay_training.config.objective import AbsoluteObjective, PreferenceObjective
from assay_training.config.reward import RewardConfig
from assay_training.evaluation.results import compute_results
from assay_training.evaluation.rows import Rows
from assay_training.records.record import Pair
from assay_training.reward_model.card import CardFacts, render_card
from tests.training.tiny import fake_ids, labelled, ranking

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
Z = 1.959964
PREFERENCE, ABSOLUTE = PreferenceObjective(kind="preference"), AbsoluteObjective(kind="absolute")


def config(kind: str) -> RewardConfig:
    return read(CONFIGS / f"{kind}.yaml", RewardConfig)


def test_rows_of_rankings_are_the_margins_of_their_pairs() -> None:
    examples = [
        fake_ids(ranking("a", "xyz", ((2, 0), (1, 0)), "feedbackqa"), 1, 1, 1),
        fake_ids(ranking("b", "xy", ((0, 1),), "hh_rlhf/helpful-base"), 1, 1),
    ]
    rows = Rows.of(
        [example.record for example in examples],
        {"model": [[1.0, 2.0, 5.0], [0.5, 1.0]], "length": [[0.0, 0.0, 3.0], [2.0, 1.0]]},
    )
    assert rows.sources.tolist() == ["feedbackqa", "feedbackqa", "hh_rlhf/helpful-base"]
    assert rows.groups.tolist() == ["a", "a", "b"]
    assert rows.values["model"].tolist() == [4.0, 1.0, -0.5]
    assert rows.values["length"].tolist() == [3.0, 0.0, 1.0]
    assert rows.labels is None


def test_rows_of_labels_are_their_logits() -> None:
    examples = [fake_ids(labelled("a", "x", 0.25), 1), fake_ids(labelled("b", "x", 1.0, "diasafety"), 1)]
    rows = Rows.of([example.record for example in examples], {"model": [[-1.5], [2.0]]})
    assert rows.labels is not None
    assert (rows.values["model"].tolist(), rows.labels.tolist()) == ([-1.5, 2.0], [0.25, 1.0])
    part = rows.where(rows.sources == "diasafety")
    assert part.labels is not None
    assert (part.groups.tolist(), part.values["model"].tolist(), part.labels.tolist()) == (["b"], [2.0], [1.0])


def preference_rows() -> Rows:
    """Two helpful subsets, harmless and feedbackqa, of two groups each; the model's hits are 1 0, 1 ½, 1 1, 0 0."""
    margins = [0.1, -0.2, 3.0, 0.0, 1.0, 2.0, -1.0, -5.0]
    names = ["hh_rlhf/helpful-base", "hh_rlhf/helpful-online", "hh_rlhf/harmless-base", "feedbackqa"]
    sources = np.array([name for name in names for _ in range(2)])
    values = {"model": np.array(margins), "length": -np.ones(8), "frozen head": np.array([1.0, -1.0] * 4)}
    gaps = np.array([np.nan] * 6 + [0.2, 0.9])
    ties = Rows(np.array(["feedbackqa"] * 2), np.array(["g6", "g7"]), {"model": np.array([-0.5, 1.5])})
    groups = np.array([f"g{i}" for i in range(8)])
    return Rows(sources, groups, values, gaps=gaps, extremes=np.array([True, False] * 4), ties=ties)


def test_accuracy_by_domain() -> None:
    numbers = compute_results(preference_rows(), PREFERENCE, seed=0)
    accuracy = {domain: part["accuracy"]["model"]["value"] for domain, part in numbers.items()}
    assert accuracy == {
        "hh_rlhf/helpful-base": 0.5,
        "hh_rlhf/helpful-online": 0.75,
        "hh_rlhf/harmless-base": 1.0,
        "feedbackqa": 0.0,
        "hh_rlhf/helpful (all)": 0.625,
        "hh_rlhf (all)": 0.75,
        "all": 0.5625,
    }
    assert {part["accuracy"]["length"]["value"] for part in numbers.values()} == {0.0}
    assert numbers["all"]["accuracy"]["model"]["n"] == 8
    assert numbers["hh_rlhf/helpful (all)"]["accuracy"]["model"]["clusters"] == 4


def test_the_difference_is_paired() -> None:
    """Hits 1 0 1 ½ against 1 0 1 0: differences 0 0 0 ½, mean 1/8 and SEM 1/8; unpaired the SEM would be above 0.3."""
    difference = compute_results(preference_rows(), PREFERENCE, seed=0)["hh_rlhf/helpful (all)"]["difference"][
        "frozen head"
    ]
    assert difference["value"] == pytest.approx(0.125)
    assert difference["high"] - difference["value"] == pytest.approx(Z * 0.125, abs=1e-6)


def absolute_rows() -> Rows:
    labels = np.array([0.0, 1.0] * 15 + [0.0, 0.5, 5 / 6] * 10)
    sources = np.array(["diasafety"] * 30 + ["feedbackqa"] * 30)
    groups = np.array([f"g{i}" for i in range(60)])
    model = np.log((labels * 0.8 + 0.1) / (1 - labels * 0.8 - 0.1))  # its sigmoid is 0.1 + 0.8 · label
    values = {"model": model, "length": np.tile([0.5, 0.1, 0.2, 0.7], 15), "frozen head": -model}
    return Rows(sources, groups, values, labels=labels)


@cache
def absolute_results(seed: int) -> dict[str, Any]:
    """Once for all tests: the bootstrap takes seconds."""
    return compute_results(absolute_rows(), ABSOLUTE, seed)


def test_absolute_numbers_by_domain() -> None:
    numbers = absolute_results(0)
    assert set(numbers) == {"diasafety", "feedbackqa"}
    assert numbers["diasafety"]["statistic"] == "AUC"
    assert numbers["diasafety"]["rank"]["model"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 30, "clusters": 30}
    assert numbers["diasafety"]["rank"]["frozen head"]["value"] == 0.0
    assert numbers["diasafety"]["difference"]["frozen head"]["value"] == 1.0
    assert numbers["feedbackqa"]["statistic"] == "Spearman"
    assert numbers["feedbackqa"]["rank"]["model"]["value"] == pytest.approx(1.0)
    assert numbers["feedbackqa"]["difference"]["frozen head"]["value"] == pytest.approx(2.0)
    assert numbers["feedbackqa"]["difference"]["length"]["low"] > 0


def test_absolute_errors_are_those_of_the_sigmoid() -> None:
    errors = absolute_results(0)["feedbackqa"]["errors"]["model"]
    assert errors["low"] == (10, pytest.approx(0.01), pytest.approx(0.1))  # 0.1 for 0
    assert errors["mid"][0] == 20  # 0.5 for 0.5, and 0.1 + 2/3 for 5/6
    assert errors["mid"][1:] == (pytest.approx((0.8 / 12) ** 2 / 2), pytest.approx(0.8 / 24))
    assert "high" not in errors


def test_the_seed_reaches_the_bootstrap() -> None:
    rows = absolute_rows()
    other = compute_results(rows.where(rows.sources == "feedbackqa"), ABSOLUTE, seed=1)
    ranks = [numbers["feedbackqa"]["rank"]["length"] for numbers in (absolute_results(0), other)]
    assert ranks[0]["value"] == ranks[1]["value"]
    assert ranks[0]["low"] != ranks[1]["low"]


def facts(kind: str) -> CardFacts:
    rendering = {
        "truncated_prompts": 12,
        "cut_completions": 3,
        "refused": {"special_tokens": 4},
        "dropped": {"hh_rlhf: empty completion": 5},
    }
    hashes = {"b/x.jsonl.gz": "0b" * 32, "a/x.jsonl.gz": "0a" * 32}
    return CardFacts(config(kind), hashes, rendering, 4321, {"torch": "9.8.7"})


def card(kind: str, results: dict[str, Any]) -> str:
    return render_card([(facts(kind), results)], config(kind), Path("my.yaml"))


def estimate(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": 200, "clusters": 150}


def preference_results(difference: dict[str, float], model: dict[str, float]) -> dict[str, Any]:
    accuracy = {"model": model, "length": estimate(0.55, 0.05), "frozen head": estimate(0.6, 0.05)}
    return {"feedbackqa": {"accuracy": accuracy, "difference": {"frozen head": difference, "length": difference}}}


def verdict(results_: dict[str, Any], kind: str = "preference") -> str:
    (line,) = [line for line in card(kind, results_).splitlines() if line.startswith("- feedbackqa: ")]
    return line


@pytest.mark.parametrize(
    ("model", "difference", "expected"),
    [
        (
            (0.7, 0.1),
            (0.1, 0.05),
            "is above the length baseline; the difference from the frozen head is positive, and so",
        ),
        ((0.7, 0.1), (0.1, 0.2), "is above the length baseline; the difference from the frozen head is positive."),
        (
            (0.6, 0.1),
            (0.1, 0.2),
            "is **not above** the length baseline; the difference from the frozen head is positive.",
        ),
        (
            (0.7, 0.1),
            (-0.1, 0.2),
            "is above the length baseline; the difference from the frozen head is **not positive**.",
        ),
        (
            (0.5, 0.0),
            (0.0, 0.0),
            "**not above** the length baseline; the difference from the frozen head is **not positive**.",
        ),
        (
            (float("nan"), 0.0),
            (float("nan"), 0.0),
            "**not above** the length baseline; the difference from the frozen head",
        ),
    ],
)
def test_the_verdict_follows_from_the_numbers(
    model: tuple[float, float], difference: tuple[float, float], expected: str
) -> None:
    assert expected in verdict(preference_results(estimate(*difference), estimate(*model)))


@pytest.mark.parametrize(
    ("half", "expected"), [(0.05, "lower bound is above the length"), (0.3, "lower bound is **not above** the length")]
)
def test_the_verdict_on_an_absolute_model(half: float, expected: str) -> None:
    rank = {"model": estimate(0.6, half), "length": estimate(0.5, 0), "frozen head": estimate(0.9, 0)}
    errors = {name: {"low": (10, 0.01, 0.1), "all": (10, 0.01, 0.1)} for name in rank}
    difference = {"frozen head": estimate(-0.3, 0.1), "length": estimate(0.1, 0.1)}
    numbers = {"errors": errors, "statistic": "Spearman", "rank": rank, "difference": difference}
    line = verdict({"feedbackqa": numbers}, "absolute")
    assert expected in line
    assert "**not positive**." in line


def test_a_preference_card_has_everything_needed_to_reproduce_it() -> None:
    text = card("preference", preference_results(estimate(0.1, 0.05), estimate(0.7, 0.1)))
    row = "| feedbackqa | 200 | 150 | **0.700 [0.600, 0.800]** | 0.550 | 0.600 | +0.100 [+0.050, +0.150] |"
    for expected in (
        *(
            row,
            "# preference",
            "4321 prompts",
            "Prompts truncated on the left: 12; completions truncated on the right: 3",
        ),
        *(
            "refused by the renderer: 4 special_tokens",
            "faulty rows dropped: 5 hh_rlhf: empty completion",
            "    assay train reward --config my.yaml --data DIR",
            "Seed 7; torch 9.8.7",
        ),
        *(f"{'0a' * 32}  a/x.jsonl.gz\n{'0b' * 32}  b/x.jsonl.gz", "learning_rate: "),
    ):
        assert expected in text


def test_an_absolute_card_has_a_row_for_every_bucket() -> None:
    text = card("absolute", absolute_results(0))
    assert "| diasafety | 30 | AUC | **1.000 [1.000, 1.000]** | " in text
    for bucket, count in (("low", 10), ("mid", 20), ("all", 30)):
        assert text.count(f"| feedbackqa | {bucket} | {count} | ") == 1
    assert "| feedbackqa | low | 10 | 0.0100 / 0.1000 | " in text
    assert "| feedbackqa | high" not in text


def test_a_card_reads_the_former_key_of_dropped_rows() -> None:
    new = facts("absolute")
    former = {"left_out" if key == "dropped" else key: value for key, value in new.rendering.items()}
    old = replace(new, rendering=former)
    cards = [render_card([(one, absolute_results(0))], config("absolute"), Path("my.yaml")) for one in (new, old)]
    assert cards[0] == cards[1]
    assert "faulty rows dropped: 5 hh_rlhf: empty completion." in cards[0]


def test_a_card_of_real_results_is_made_of_both_kinds() -> None:
    """Checks that `card` takes what `compute_results` gives."""
    assert "| all | 8 | 8 | " in card("preference", compute_results(preference_rows(), PREFERENCE, seed=0))


def test_accuracy_by_strength_counts_pairs_by_quarters_of_the_gap() -> None:
    """[Llama 2] table 8; a strength with fewer than two groups has no interval and is skipped."""
    examples, logits = [], []
    gaps = [1 / 6, 0.25, 1 / 3, 0.5, 2 / 3, 0.75, 5 / 6, 1.0]
    for i, gap in enumerate(gaps):
        record = replace(ranking(f"g{i}", "ab", (), "feedbackqa"), pairs=(Pair(0, 1, gap),))
        examples.append(fake_ids(record, 1, 1))
        logits.append([float(i % 2), 0.5])
    numbers = compute_results(Rows.of([example.record for example in examples], {"model": logits}), PREFERENCE, seed=0)[
        "feedbackqa"
    ]
    strengths = numbers["by strength"]
    assert list(strengths) == ["negligibly better", "slightly better", "better", "significantly better"]
    assert {name: part["model"]["n"] for name, part in strengths.items()} == dict.fromkeys(strengths, 2)
    assert {part["model"]["value"] for part in strengths.values()} == {0.5}
    assert (numbers["margins"]["n"], numbers["margins"]["share_negative"]) == (8, 0.5)


def test_best_against_worst_is_one_pair_of_each_ranking() -> None:
    order = ((1, 0), (1, 2), (2, 0), (1, 3), (2, 3))  # 1 beats three, 0 and 3 lose two each: the first of them
    examples = [
        fake_ids(ranking("a", "wxyz", order, "x"), 1, 1, 1, 1),
        fake_ids(ranking("b", "xy", ((1, 0),), "x"), 1, 1),
        fake_ids(ranking("c", "xyz", ((0, 1), (1, 2), (2, 0)), "x"), 1, 1, 1),  # a circle
    ]
    rows = Rows.of(
        [example.record for example in examples], {"model": [[0.0, 1.0, 2.0, 3.0], [0.0, 1.0], [0.0, 0.0, 0.0]]}
    )
    assert rows.extremes is not None
    assert rows.extremes.tolist() == [True, False, False, False, False, True, False, False, False]
    numbers = compute_results(rows, PREFERENCE, seed=0)["all"]
    assert (numbers["best against worst"]["model"]["n"], numbers["best against worst"]["model"]["value"]) == (2, 1.0)


def test_ties_are_reported_apart() -> None:
    record = replace(ranking("a", "xyz", ((0, 1),), "x"), ties=((0, 2), (1, 2)))
    others = [ranking("c", "xy", source="x"), ranking("b", "xy", source="y"), ranking("d", "xy", source="y")]
    rows = Rows.of(
        [record, *others],
        {"model": [[3.0, 1.0, 2.5], *([1.0, 0.0] for _ in others)]},
    )
    numbers = compute_results(rows, PREFERENCE, seed=0)
    assert numbers["x"]["ties"] == {"n": 2, "mean |margin|": 1.0}  # 0.5 and -1.5
    assert numbers["y"]["ties"] == {"n": 0, "mean |margin|": None}
    assert numbers["all"]["accuracy"]["model"]["n"] == 4


def test_ties_of_a_source_without_pairs_are_counted_in_all() -> None:
    tied = replace(ranking("a", "xy", (), "x"), ties=((0, 1),))
    others = [ranking("b", "xy", source="y"), ranking("c", "xy", source="y")]
    numbers = compute_results(
        Rows.of([tied, *others], {"model": [[3.0, 1.0], [1.0, 0.0], [1.0, 0.0]]}), PREFERENCE, seed=0
    )
    assert list(numbers) == ["y", "all"]  # one group
    assert numbers["all"]["ties"] == {"n": 1, "mean |margin|": 2.0}
    assert numbers["y"]["ties"] == {"n": 0, "mean |margin|": None}


def test_an_accuracy_without_a_miss_is_not_certain() -> None:
    """Four of four: Wilson's interval, from 0.5101."""
    rows = Rows.of([ranking(name, "xy", source="y") for name in "abcd"], {"model": [[1.0, 0.0]] * 4})
    accuracy = compute_results(rows, PREFERENCE, seed=0)["all"]["accuracy"]["model"]
    assert (accuracy["value"], accuracy["low"], accuracy["high"]) == (1.0, pytest.approx(0.510109, abs=1e-6), 1.0)


def test_calibration_is_of_the_quality() -> None:
    (low, mid, high) = absolute_results(0)["feedbackqa"]["calibration"]
    assert (low["n"], low["prediction"], low["label"]) == (10, pytest.approx(0.1), 0.0)
    assert (mid["n"], mid["label"], high["n"], high["label"]) == (10, 0.5, 10, pytest.approx(5 / 6))


def test_a_raw_output_is_its_own_quality_and_the_baselines_are_not() -> None:
    labels = np.array([0.0, 0.5, 1.0])
    rows = Rows(
        np.array(["a"] * 3),
        np.array(list("xyz")),
        {"model": labels, "length": np.array([-1.0, 0.0, 1.0])},
        labels=labels,
    )
    raw = AbsoluteObjective(kind="absolute", loss="mse+penalty")
    errors = compute_results(rows, raw, seed=0)["a"]["errors"]
    assert errors["model"]["all"] == (3, 0.0, 0.0)
    assert errors["length"]["all"] == (3, pytest.approx(0.0482, abs=1e-4), pytest.approx(0.1793, abs=1e-4))


def test_a_source_of_one_group_has_no_numbers_of_its_own() -> None:
    examples = [
        fake_ids(ranking(group, "xy", source=source), 1, 1) for group, source in (("a", "x"), ("b", "y"), ("c", "y"))
    ]
    logits = [[1.0, 0.0]] * 3
    numbers = compute_results(
        Rows.of([example.record for example in examples], {"model": logits, "length": logits}), PREFERENCE, seed=0
    )
    assert list(numbers) == ["y", "all"]
    assert numbers["all"]["difference"]["length"]["value"] == 0


def test_labels_that_are_all_equal_have_errors_but_no_rank() -> None:
    examples = [fake_ids(labelled(group, "x", 0.25), 1) for group in "abc"]
    logits: dict[str, Any] = {name: [[0.0], [1.0], [2.0]] for name in ("model", "length", "frozen head")}
    numbers = compute_results(Rows.of([example.record for example in examples], logits), ABSOLUTE, seed=0)["feedbackqa"]
    assert numbers["rank"] == {"model": None, "length": None, "frozen head": None}
    assert numbers["errors"]["model"]["all"][0] == 3
    text = card("absolute", {"feedbackqa": numbers})
    assert "| feedbackqa | 3 | Spearman | **-** | - | - | - |" in text
    assert "too alike to be ranked" in text


def test_a_gap_of_nothing_is_a_negligible_preference() -> None:
    """Llama-2's margins are 0, 1/3, 2/3 and 1 for its four strengths."""
    gaps = (0.0, 1 / 3, 2 / 3, 1.0)
    records = [replace(ranking(str(i), "xy"), pairs=(Pair(0, 1, gaps[i // 2]),)) for i in range(8)]
    rows = Rows.of(records, {"model": [[i / 10, 0.35] for i in range(8)]})
    found = compute_results(rows, PREFERENCE, seed=0)["all"]["by strength"]
    assert {name: numbers["model"]["value"] for name, numbers in found.items()} == {
        "negligibly better": 0.0,
        "slightly better": 0.0,
        "better": 1.0,
        "significantly better": 1.0,
    }
