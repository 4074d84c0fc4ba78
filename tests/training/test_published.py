"""The printed tables of [CRS] from its published rows (`--data=DIR`); skipped where they are absent."""

import json
from pathlib import Path
from statistics import pstdev
from typing import Any

import pytest

from assay_training.algorithms.voting import rank_by_pairs
from assay_training.evaluation.judgments.ballots import read_polls
from tests.training.test_judgments import records

PAIRS = {  # Tables 11 and 16: wins of the first over the second, in percent
    ("abs", "rank_002"): 66, ("crs_025", "rank_002"): 61, ("sft", "rank_002"): 71, ("abs", "crs_025"): 63,
    ("sft", "abs"): 55, ("sft", "crs_025"): 61, ("rank_001", "abs"): 36, ("rank_002", "abs"): 34,
    ("rank_002", "crs_0625"): 44, ("crs_0625", "abs"): 35, ("abs", "crs_0625"): 65,
}  # fmt: skip
ERRORS = {  # Table 23
    ("rank_002", "abs"): 4.76, ("rank_002", "crs_025"): 4.90, ("rank_002", "sft"): 4.56,
    ("abs", "crs_025"): 4.85, ("abs", "sft"): 5.0, ("crs_025", "sft"): 4.90,
}  # fmt: skip
SUBSETS = ("helpful_base", "koala", "vicuna", "oasst")
BY_SUBSET = {  # [CRS] tables 15, 20 and 21; of the last the other column is a misprint
    ("abs", "rank_002"): (64, 76, 84, 40), ("crs_025", "rank_002"): (56, 76, 68, 44),
    ("crs_0625", "rank_002"): (60, 64, 52, 48), ("rank_002", "crs_0625"): (40, 36, 48, 52),
}  # fmt: skip
LONGER = {  # recomputed from the verdicts of [CRS]
    ("abs", "rank_002"): 67, ("crs_025", "rank_002"): 55, ("abs", "crs_025"): 58,
    ("abs", "sft"): 60, ("rank_002", "sft"): 65, ("crs_025", "sft"): 67,
}  # fmt: skip


@pytest.fixture(scope="module")
def rates(published: Path) -> dict[tuple[str, str, str | None], dict[str, Any]]:
    files = sorted((published / "judgments").glob("*.json.gz"))
    found = records("winrate", *files, "--groups", published / "prompts" / "eval_final.json")
    return {(r["row"], r["column"], r["group"]): r for r in found}


def test_win_rates_and_their_errors(rates: dict[tuple[str, str, str | None], dict[str, Any]]) -> None:
    assert {pair: round(100 * rates[*pair, None]["win_rate"]) for pair in PAIRS} == PAIRS
    assert {pair: rates[*pair, None]["n"] for pair in PAIRS} == dict.fromkeys(PAIRS, 100)
    for pair, se in ERRORS.items():
        assert 100 * rates[*pair, None]["se"] == pytest.approx(se, abs=0.0051)


def test_win_rates_by_subset(rates: dict[tuple[str, str, str | None], dict[str, Any]]) -> None:
    found = {pair: tuple(round(100 * rates[*pair, subset]["win_rate"]) for subset in SUBSETS) for pair in BY_SUBSET}
    assert found == BY_SUBSET
    assert {rates[*pair, subset]["n"] for pair in BY_SUBSET for subset in SUBSETS} == {25}


def test_how_often_the_longer_one_wins(rates: dict[tuple[str, str, str | None], dict[str, Any]]) -> None:
    assert {pair: round(100 * rates[*pair, None]["longer_wins"]) for pair in LONGER} == LONGER


def test_the_human_study(published: Path) -> None:
    """[CRS] table 17, and what other rules for ties make of it."""
    files = sorted((published / "human_study").glob("original-*.json"))
    found = records("vote", *files, "--keys", published / "human_study" / "all_keys.json")
    groups = ["run_num0", "run_num1", "run_num2", None]

    def points(ballot: str | None, majority: str | None) -> dict[str, list[float]]:
        rows = [r for r in found if (r["ballot_ties"], r["majority_ties"]) == (ballot, majority)]
        by = {(r["model"], r["group"]): round(r["points"], 3) for r in rows}
        return {model: [by[model, group] for group in groups] for model in ("rank", "abs", "crs")}

    assert {model: [round(p, 2) for p in values] for model, values in points("stored order", "by name").items()} == {
        "rank": [0.63, 0.48, 0.52, 0.54], "abs": [0.73, 0.87, 0.78, 0.79], "crs": [0.63, 0.65, 0.70, 0.66]
    }  # fmt: skip
    rounded = {model: [round(p, 2) for p in values[:3]] for model, values in points("stored order", "by name").items()}
    assert {model: round(pstdev(values), 3) for model, values in rounded.items()} == {
        "rank": 0.063,
        "abs": 0.058,
        "crs": 0.029,
    }
    turned = points("stored order", "by name, reversed")
    assert {model: values[-1] for model, values in turned.items()} == {"rank": 0.689, "abs": 0.639, "crs": 0.672}
    turned = points("no vote", "by name, reversed")  # the one that [CRS] prints
    assert {model: values[-1] for model, values in turned.items()} == {"rank": 0.672, "abs": 0.639, "crs": 0.689}
    level = points("stored order", "no majority")
    assert {model: values[-1] for model, values in level.items()} == {"rank": 0.611, "abs": 0.714, "crs": 0.675}
    level = points("no vote", "no majority")
    assert {model: values[-1] for model, values in level.items()} == {"rank": 0.614, "abs": 0.714, "crs": 0.672}
    assert {model: values[-1] for model, values in points(None, None).items()} == {
        "rank": 0.623,
        "abs": 0.692,
        "crs": 0.685,
    }


def test_the_merged_rankings_are_the_authors(published: Path) -> None:
    folder = published / "human_study"
    polls = read_polls(sorted(folder.glob("original-*.json"), reverse=True), folder / "all_keys.json")
    stored = [tuple(order) for path in sorted(folder.glob("final_*.json")) for order in json.loads(path.read_text())]
    rankings = [rank_by_pairs(poll.ballots, "stored order", "by name") for poll in polls]
    found = [tuple(model for tied in ranking for model in tied) for ranking in rankings]
    assert len(found) == 60
    assert found == stored


TABLES = """
    abs_logistic_s_05_quality                               .0771 .2348 .0862 .2765 .0293 .1392
    abs_mse_s_075_quality                                   .3159 .5161 .0642 .1971 .1209 .2801
    abs_sig_mse_s_075_quality                               .0618 .1981 .0964 .2800 .0423 .1652
    abs_logistic_over_and_under_s_75_quality                .0611 .1999 .1027 .2923 .0415 .1662
    abs_logistic_aug_and_under_quality                      .0853 .2446 .0786 .2493 .0326 .1455
    abs_sig_mse_aug_and_under_quality                       .1056 .2827 .0593 .2132 .0299 .1360
    abs_sig_mse_aug_over_and_un_till16_w14_for_04_09_quality  .1223 .3030 .0441 .1796 .0255 .1262
    abs_logistic_aug_over_and_un_till16_w14_for_04_09_quality .0889 .2555 .0645 .2320 .0263 .1301

    abs_logistic_aug_and_under_s_05_quality                 .1052 .2799 .0568 .2080 .0275 .1322
    abs_logistic_aug_and_under_s_075_quality                .0721 .2267 .0852 .2640 .0335 .1471
    abs_logistic_over_and_under_s_05_quality                .0519 .1801 .1195 .3174 .0465 .1754
    abs_logistic_over_and_under_s_75_quality                .0611 .1999 .1027 .2923 .0415 .1662
    abs_logistic_over_and_under_quality                     .1051 .2752 .0534 .2009 .0290 .1351
    abs_logistic_s_05_quality                               .0771 .2348 .0862 .2765 .0293 .1392
    abs_logistic_s_075_quality                              .0591 .2040 .1159 .3205 .0369 .1573
    abs_logistic_quality                                    .1227 .3099 .0518 .2091 .0222 .1192
"""


def test_the_stored_errors_are_the_printed_ones(published: Path) -> None:
    """All rows of Tables 6 and 7: MSE and MAE of labels <= 0.4, >= 0.9 and between.

    Table 6's first row is printed as the model with wgt_s_075; its numbers are those of wgt_s_05 in the author's data.
    Files that cut at 0.8 are others.
    """
    stored: dict[str, list[float]] = {}
    for path in sorted((published / "reward_model_metrics").glob("*.json")):
        for name, buckets in json.loads(path.read_text()).items():
            if "Above 0.9" in buckets:
                cells = ((b, m) for b in ("Below 0.4", "Above 0.9", "Between 0.4 and 0.9") for m in ("mse", "mae"))
                stored[name] = [float(buckets[bucket][measure]) for bucket, measure in cells]
    rows = [line.split() for line in TABLES.splitlines() if line.strip()]
    assert len(rows) == 16
    for name, *printed in rows:
        assert stored[name] == pytest.approx([float(cell) for cell in printed], abs=5.1e-5), name
