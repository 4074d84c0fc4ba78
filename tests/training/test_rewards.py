"""Agreement, margins and best-of-N: literal numbers, and the commands against a real service."""

import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from assay_client.client import RewardClient
from assay_client.errors import FingerprintChanged
from assay_service.scoring.item import Item, Message
from assay_training.algorithms.best_of_n import (
    compute_expected_gold,
    compute_kl_bound,
    compute_selection_probabilities,
    compute_win_rate,
)
from assay_training.algorithms.statistics import compute_reliability
from assay_training.cli.main import app
from assay_training.evaluation.report import print_table, render_json
from assay_training.evaluation.rewards import scores as served_scores
from assay_training.evaluation.rewards.agreement import compute_kappa, tabulate_agreement
from assay_training.evaluation.rewards.best_of_n import tabulate_best_of_n
from assay_training.evaluation.rewards.inputs import (
    Candidates,
    read_comparisons,
    select_candidates,
    select_ranking,
)
from assay_training.evaluation.rewards.margins import tabulate_margins
from assay_training.evaluation.rewards.options import ReadOptions
from assay_training.records.record import Pair, Ranking, RecordError
from assay_training.records.sources import Read
from tests.client.conftest import Wire
from tests.service.test_serve_process import served, wait_until_ready

PIPELINE = Path(__file__).parents[2] / "examples" / "pipeline" / "service.yaml"

values = st.lists(st.integers(0, 4), min_size=2, max_size=7)


@given(values, st.data())
def test_the_best_of_n_is_the_mean_over_all_draws(gold: list[int], data: st.DataObject) -> None:
    """By enumeration of every subset; among equal scores the pick is uniform."""
    scores = data.draw(st.lists(st.integers(0, 3), min_size=len(gold), max_size=len(gold)))
    n = data.draw(st.integers(1, len(gold)))
    picks = []
    for drawn in combinations(range(len(gold)), n):
        best = max(scores[i] for i in drawn)
        tied = [gold[i] for i in drawn if scores[i] == best]
        picks.append(sum(tied) / len(tied))
    found = compute_expected_gold(np.array(scores, dtype=float), np.array(gold, dtype=float), n)
    assert found == pytest.approx(sum(picks) / len(picks))
    assert compute_selection_probabilities(np.array(scores, dtype=float), n).sum() == pytest.approx(1)


def test_many_samples_do_not_overflow() -> None:
    scores = np.arange(512).astype(np.float64)
    assert compute_expected_gold(scores, scores, 256) == pytest.approx(
        256 / 257 * 513 - 1
    )  # the mean of the largest of n


def test_the_kl_bound() -> None:
    assert [compute_kl_bound(n) for n in (1, 2, 256)] == pytest.approx([0, math.log(2) - 0.5, 4.549083], abs=1e-6)


def test_the_opponent_is_one_that_was_not_picked_from() -> None:
    """By the gold value itself the best of two beats a third in two of three cases, whatever M is."""
    for count in (3, 5, 9):
        gold = np.arange(count).astype(np.float64)
        assert compute_win_rate(gold, gold, 2) == pytest.approx(2 / 3)
        assert compute_win_rate(-gold, gold, 2) == pytest.approx(1 / 3)
        assert compute_win_rate(np.zeros(count), gold, 2) == pytest.approx(0.5)


def ranking(i: int, *pairs: Pair, ties: tuple[tuple[int, int], ...] = (), source: str = "a") -> Ranking:
    return Ranking(source, f"g{i}", (Message("user", f"q{i}"),), ("x", "yy", "zzz"), pairs, ties)


def records(table: Any, **where: Any) -> list[dict[str, Any]]:
    return [dict(r) for r in table.records if all(r[key] == value for key, value in where.items())]


def test_agreement_beside_length_by_strength_and_with_ties_apart() -> None:
    """The model is right in 3 of 4 pairs, the length in 2; one prompt's completions are tied."""
    judged = [
        ranking(0, Pair(0, 1, 0.1), Pair(0, 2, 1.0)),
        ranking(1, Pair(2, 1, 0.2)),
        ranking(2, Pair(1, 0, 1.0), source="b"),
        ranking(3, ties=((0, 1),), source="b"),
    ]
    scores = [[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 2.0], [5.0, 3.0, 0.0]]
    table = tabulate_agreement(judged, {"m": scores})
    (every,) = records(table, source="all", strength=None, model="m")
    assert (every["n"], every["groups"], every["accuracy"], every["ties"], every["tied_margin"]) == (4, 3, 0.75, 1, 2.0)
    (length,) = records(table, source="all", strength=None, model="length")
    assert (length["accuracy"], every["difference"], length["difference"]) == (0.5, 0.25, None)
    assert every["ci95"][0] < 0.75 < every["ci95"][1]
    by_strength = {r["strength"]: (r["n"], r["accuracy"]) for r in records(table, source="all", model="m")}
    assert by_strength == {None: (4, 0.75), "negligibly better": (2, 0.5), "significantly better": (2, 1.0)}
    (alone,) = records(table, source="b", strength=None, model="m")
    assert (alone["n"], alone["ci95"], alone["difference95"]) == (1, None, None)
    assert "<svg" in table.pictures[0].svg


def test_a_source_of_ties_alone_is_counted_and_reported() -> None:
    """Two sources, one with five tied verdicts and nothing else."""
    judged = [ranking(i, Pair(0, 1)) for i in range(3)] + [ranking(i, ties=((0, 1),), source="b") for i in range(3, 8)]
    scores = [[1.0, 0.0, 0.0]] * 3 + [[2.0, 0.5, 0.0]] * 5
    table = tabulate_agreement(judged, {"m": scores})
    found = {r["source"]: (r["n"], r["accuracy"], r["ties"], r["tied_margin"]) for r in records(table, model="m")}
    assert found == {"a": (3, 1.0, 0, None), "b": (0, None, 5, 1.5), "all": (3, 1.0, 5, 1.5)}
    (tied,) = records(table, source="b", model="m")
    assert [tied[key] for key in ("groups", "ci95", "kappa", "difference", "difference95")] == [0, *[None] * 4]
    assert tied["versus"] == {"length": {"difference": None, "ci95": None}}
    assert "m, b" not in table.pictures[0].svg
    assert "m, a" in table.pictures[0].svg
    alone = tabulate_agreement(judged[3:], {"m": scores[3:]})
    assert [(r["source"], r["accuracy"], r["ties"]) for r in records(alone, model="m")] == [
        ("b", None, 5),
        ("all", None, 5),
    ]
    render_json(alone)
    assert "<svg" in alone.pictures[0].svg


def test_margins_of_a_source_of_ties_alone() -> None:
    """It has no margins, but scores and lengths, which count in `all` too."""
    judged = [ranking(0, Pair(0, 1)), ranking(1, ties=((0, 1),), source="b")]
    table = tabulate_margins(judged, {"m": [[1.0, 2.0, 3.0], [3.0, 3.0, 0.0]]})
    (tied,), (every,) = (records(table, source=name, strength=None) for name in ("b", "all"))
    nothing = ("mean", "std", "share_negative", "skewness", "kurtosis", "accuracy", "best_minus_worst")
    assert [tied[key] for key in (*nothing, "calibration_error")] == [None] * 8
    assert (tied["n"], tied["calibration"], tied["mean_score"], tied["std_score"]) == (0, [], 2.0, 3**0.5)
    assert tied["length_correlation"] == pytest.approx(-(3**0.5) / 2)
    assert every["mean_score"] == 2.0
    assert every["length_correlation"] == pytest.approx(-0.5 / (4 * 8) ** 0.5 * 2)
    assert all("<svg" in picture.svg for picture in table.pictures)
    assert len(tabulate_margins(judged[1:], {"m": [[3.0, 3.0, 0.0]]}).pictures) == 1  # no margins to be shown


def test_a_single_pair_has_no_moments() -> None:
    (found,) = records(
        tabulate_margins([ranking(0, Pair(0, 1))], {"m": [[3.0, 1.0, 0.0]]}), source="all", strength=None
    )
    assert [found[key] for key in ("n", "mean", "std", "skewness", "kurtosis")] == [1, 2.0, None, None, None]


def test_the_mean_score_is_over_completions() -> None:
    """0.8619 and 2.2569 are those of [CRS] figure 24; here 0 1 2 and 4 5 6, with a strength that has none."""
    judged = [ranking(0, Pair(1, 0, 1.0)), ranking(1, Pair(1, 0, 1.0))]
    table = tabulate_margins(judged, {"m": [[0.0, 1.0, 2.0], [4.0, 5.0, 6.0]]})
    found = {r["strength"]: (r["mean_score"], r["std_score"]) for r in records(table, source="all")}
    assert found == {None: (3.0, pytest.approx(5.6**0.5)), "significantly better": (None, None)}


def test_few_prompts_are_reported() -> None:
    def notes(count: int) -> list[str]:
        table = tabulate_agreement([ranking(i, Pair(0, 1)) for i in range(count)], {"m": [[1.0, 0.0, 0.0]] * count})
        return [note for note in table.notes if note.startswith("Fewer than 10 prompts")]

    assert notes(9) == ["Fewer than 10 prompts, so that the intervals of differences are too narrow: a, all."]
    assert notes(10) == []


def test_shares_have_intervals_within_0_and_1() -> None:
    """Three of three, and 2 of 3 by the length: Wilson's intervals."""
    judged = [ranking(0, Pair(1, 0)), ranking(1, Pair(1, 0)), ranking(2, Pair(0, 1))]
    table = tabulate_agreement(judged, {"m": [[0.0, 1.0, 0.0]] * 2 + [[1.0, 0.0, 0.0]]})
    found = {r["model"]: r["ci95"] for r in records(table, source="all")}
    assert found["m"] == pytest.approx([0.438503, 1.0], abs=1e-6)
    assert found["length"] == pytest.approx([0.207660, 0.938508], abs=1e-6)


def test_the_table_of_three_models_fits_80_columns() -> None:
    names = ("hh_rlhf/helpful-base", "feedbackqa")
    judged = [ranking(i, Pair(0, 1, 1.0), source=names[i % 2]) for i in range(400)]
    judged += [ranking(400 + i, ties=((0, 1),), source=names[0]) for i in range(1000)]
    rows = [[1.0, i % 3 / 1.5, 0.0] for i in range(1400)]
    scores = {name: rows for name in ("preference", "absolute", "crs")}
    for table in (tabulate_agreement(judged, scores), tabulate_margins(judged, scores)):
        console = Console(width=80, file=io.StringIO(), record=True)
        print_table(table, console, 80)
        text = console.export_text()
        for word in (*names, "… significantly", "preference", "absolute"):
            assert text.count(word) > 1, word
        printed = [column.cell(r) for r in table.records for column in table.columns if not column.detail]
        assert all(cell in text for cell in printed)


def test_two_models_are_compared_on_the_same_pairs() -> None:
    judged = [ranking(i, Pair(0, 1)) for i in range(20)]
    good = [[1.0, 0.0, 0.0]] * 20
    worse = [[1.0, 0.0, 0.0]] * 15 + [[0.0, 1.0, 0.0]] * 5
    table = tabulate_agreement(judged, {"good": good, "worse": worse})
    (printed,) = [note for note in table.notes if "bootstrap" in note]
    assert printed.startswith("good minus worse, paired bootstrap: +25.0% (+")
    (better,), (other,) = (records(table, source="all", strength=None, model=name) for name in ("good", "worse"))
    forth, back = better["versus"]["worse"], other["versus"]["good"]
    assert forth["difference"] == -back["difference"] == 0.25
    assert forth["ci95"] == [-end for end in reversed(back["ci95"])]
    assert 0 < forth["ci95"][0] < 0.25 < forth["ci95"][1] < 0.5


def test_kappa_is_cohens() -> None:
    """20 pairs: 8 both first, 2 and 4 apart, 6 both second: (0.7 - 0.5) / 0.5."""
    first = np.array([True] * 10 + [False] * 10)
    margins_ = np.array([1.0] * 8 + [-1.0] * 2 + [1.0] * 6 + [-1.0] * 4)
    assert compute_kappa(first, margins_) == pytest.approx(0.4)
    assert compute_kappa(np.array([True, True]), np.array([1.0, 1.0])) is None
    assert compute_kappa(first, np.zeros(20)) is None


def test_calibration_of_margins() -> None:
    """ln 4 is 0.8: of ten such margins eight should be right, and eight are."""
    (only,) = compute_reliability(np.array([math.log(4)] * 8 + [-math.log(4)] * 2))
    assert (only.n, only.label) == (10, 0.8)
    assert only.prediction == pytest.approx(0.8)
    judged = [ranking(i, Pair(0, 1)) for i in range(10)]
    scores = [[math.log(4), 0.0, 0.0]] * 8 + [[0.0, math.log(4), 0.0]] * 2
    (found,) = records(tabulate_margins(judged, {"m": scores}), source="all", strength=None)
    assert found["calibration_error"] == pytest.approx(0, abs=1e-12)
    assert (found["n"], found["share_negative"]) == (10, 0.2)
    assert found["mean"] == pytest.approx(0.6 * math.log(4))
    assert found["best_minus_worst"] == found["mean"]


def test_margins_by_strength_of_preference() -> None:
    judged = [ranking(0, Pair(1, 0, 0.1)), ranking(1, Pair(1, 0, 0.1)), ranking(2, Pair(1, 0, 1.0))]
    table = tabulate_margins(judged, {"m": [[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 3.0, 0.0]]})
    found = {r["strength"]: (r["n"], r["accuracy"], r["mean"]) for r in records(table, source="all")}
    assert found == {
        None: (3, pytest.approx(2 / 3), pytest.approx(2 / 3)),
        "negligibly better": (2, 0.5, -0.5),
        "significantly better": (1, 1.0, 3.0),
    }


def test_scores_and_characters_are_correlated_over_completions() -> None:
    judged = [ranking(i, Pair(2, 0)) for i in range(3)]
    (found,) = records(tabulate_margins(judged, {"m": [[1.0, 2.0, 3.0]] * 3}), source="all", strength=None)
    assert found["length_correlation"] == pytest.approx(1)
    assert found["length_spearman"] == pytest.approx(1)


def test_the_best_of_n_by_the_gold_value_itself_is_the_most_there_is() -> None:
    def candidates(i: int, gold: list[float]) -> Candidates:
        items = tuple(Item.of(f"q{i}", "x" * (k + 1)) for k in range(len(gold)))
        return Candidates("s", f"g{i}", items, tuple(gold))

    prompts = [candidates(0, [0.0, 0.5, 1.0, 0.5]), candidates(1, [1.0, 0.0])]
    gold = [list(c.gold) for c in prompts]
    table = tabulate_best_of_n(prompts, None, {"backwards": [[-g for g in row] for row in gold]})
    found = {(r["model"], r["n"]): (r["prompts"], r["gold"]) for r in table.records}
    assert found["gold itself", 1] == found["backwards", 1] == (2, pytest.approx(0.5))
    assert found["gold itself", 2] == (2, pytest.approx(((1 * 3 + 0.5 * 3) / 6 + 1) / 2))
    assert found["backwards", 4] == (1, 0.0)
    assert found["gold itself", 4] == (1, 1.0)
    assert ("gold itself", 8) not in found
    assert records(table, model="gold itself", n=4)[0]["win_rate"] is None  # nobody is left to be compared with
    assert records(table, model="gold itself", n=1)[0]["win_rate"] == pytest.approx(0.5)
    worth, wins = table.pictures
    assert worth.caption == "s: gold value of the best of N, over 2 prompts, 1 from N = 4 on."
    assert wins.caption == "s: win rate of the best of N against one more completion, over 2 prompts, 1 from N = 2 on."
    assert all(text in wins.svg for text in ("win rate", "bound on the KL divergence", "0.19"))  # ln 2 - 1/2
    counts = [(r["n"], r["prompts"], r["win_prompts"]) for r in records(table, model="length")]
    assert counts == [(1, 2, 2), (2, 2, 1), (4, 1, 0)]


def test_the_gold_value_of_a_served_model_is_not_a_share() -> None:
    """Logits of 10 and 20: 15 ± 1.96 · 5."""
    prompts = [Candidates("s", f"g{i}", tuple(Item.of("q", "x" * k) for k in (1, 2, 3)), ()) for i in range(2)]
    table = tabulate_best_of_n(prompts, [[10.0] * 3, [20.0] * 3], {})
    (found,) = records(table, model="gold itself", n=2)
    assert (found["gold"], found["gold95"]) == (15.0, pytest.approx([5.20018, 24.79982]))
    assert found["win_rate95"] == pytest.approx([0.094531, 0.905469], abs=1e-6)  # all tied: two prompts of one half
    (one,) = records(table, model="gold itself", n=1)
    assert (one["win_rate"], one["win_rate95"]) == (0.5, None)  # by definition


def test_a_completion_without_a_score_is_dropped_with_its_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four completions the second has no score by one model, the third none by either; each counts once."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        rows = Wire.scored(asked)
        for row, item in zip(rows["data"], asked["items"], strict=True):
            text = item["messages"][-1]["content"]
            if text == "3" or (text == "2" and asked["model"] == "q"):
                del row["score"], row["signals"]
                row["error"] = {"code": f"{asked['model']}_{text}", "message": "", "param": None, "retryable": False}
        return Wire.answer(request, json=rows)

    first = Ranking(
        *("a", "g", (Message("user", "x"),), ("1", "2", "3", "4")),
        *((Pair(0, 1), Pair(3, 0, 0.5), Pair(2, 3)), ((1, 2), (0, 3))),
    )
    second = replace(first, completions=("2", "4"), pairs=(Pair(0, 1),), ties=())
    with RewardClient("http://service", transport=httpx.MockTransport(answer)) as client:
        found = served_scores.fetch_scores([first, second, replace(first)], select_ranking, client, ["p", "q"])
        items = first.items
        several = [Candidates("s", "g", items, (0.1, 0.2, 0.3, 0.4)), Candidates("s", "g", items[1:], ())]
        candidates = served_scores.fetch_scores(several, select_candidates, client, ["p", "q"])
    assert found.failures == {"q_2": 3, "p_3": 2}
    assert (found.asked, len(found.records), found.in_part) == (3, 2, 2)
    assert found.records[0] == found.records[1]
    assert found.records[0] == replace(first, completions=("1", "4"), pairs=(Pair(1, 0, 0.5),), ties=((0, 1),))
    assert found.by_model == {"p": [[1.0, 4.0]] * 2, "q": [[1.0, 4.0]] * 2}
    (kept,) = candidates.records
    assert (kept.items, kept.gold, candidates.by_model["q"]) == ((items[0], items[3]), (0.1, 0.4), [[1.0, 4.0]])
    read: Read[Ranking] = Read([], Counter({"x: no verdict": 2}), {})
    table = served_scores.annotate(tabulate_agreement(found.records, found.by_model), found, read)
    assert {(r["asked"], r["kept"], r["kept_in_part"]) for r in table.records} == {(3, 2, 2)}
    assert {str(r["dropped"]) for r in table.records} == {"{'x: no verdict': 2}"}
    assert table.notes[-2] == "x: no verdict: 2 dropped"
    assert table.notes[-1] == (
        "Completions without a score, dropped with all comparisons to them: 3 q_2, 2 p_3. "
        "Kept: 2 of 3 prompts, 2 of them without some of their completions."
    )


def test_ballots_are_read_as_pairs_and_ties(tmp_path: Path) -> None:
    def ballots(**fields: Any) -> Path:
        ranks = [{"a": 1, "b": 2, "c": 2}, {"c": 1, "a": 3, "b": 2}]
        poll = {
            "prompt": "Q?",
            "responses": {"a": "x", "b": "y", "c": "z"},
            "ballots": [{"voter": str(i), "ranks": r} for i, r in enumerate(ranks)],
        }
        path = tmp_path / "group-1.json"
        path.write_text(json.dumps({"format": "assay-ballots", "prompts": [poll | fields]}))
        return path

    (found,) = read_comparisons(f"ballots:{ballots()}").records
    assert (found.source, found.group, found.completions) == ("group-1", "q", ("x", "y", "z"))
    assert found.pairs == (Pair(0, 1), Pair(0, 2), Pair(1, 0), Pair(2, 0), Pair(2, 1))
    assert found.ties == ((1, 2),)
    for fields, message in (
        ({"ballots": []}, "prompt 1: field 'ballots' is empty"),
        ({"ballots": [{"ranks": {"a": 1, "b": 2}}]}, "ballot 1 must have 'ranks' for exactly a, b, c"),
        ({"ballots": [{"ranks": {"a": 1, "b": 2, "c": 4}}]}, "ballot 1 has a rank that is not a number from 1 to 3"),
        ({"responses": {"a": "x"}}, "field 'responses' must have two texts or more"),
    ):
        with pytest.raises(RecordError, match=re.escape(message)):
            read_comparisons(f"ballots:{ballots(**fields)}")


def test_an_instruction_is_scored_without_chat_markup(tmp_path: Path) -> None:
    """And as it was judged, where there is none."""
    rows = [
        {"instruction": text, "output_1": "a", "output_2": "b", "generator": "new", "preference": 2}
        for text in ("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", "Why\n    not?")
    ]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    first, second = read_comparisons(f"alpaca_eval:{tmp_path / 'x.json'}", ReadOptions(reference="base")).records
    assert (first.prompt, first.group) == ((Message("user", "Why?"),), "why")
    assert second.prompt == (Message("user", "Why\n    not?"),)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_order_of_completions_does_not_depend_on_ranks(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "q", "chosen": "b", "rejected": "a", "gap": 0.5},
        {"prompt": "q", "chosen": "c", "rejected": "d"},
    ]
    first, second = read_comparisons(f"preferences:{write(tmp_path / 'x.jsonl', rows)}").records
    assert (first.completions, first.pairs) == (("a", "b"), (Pair(1, 0, 0.5),))
    assert (second.completions, second.pairs) == (("c", "d"), (Pair(0, 1),))


def test_a_folder_of_verdicts(tmp_path: Path) -> None:
    bare = {"instruction": "q", "output_1": "a", "output_2": "b", "generator": "new", "preference": 2}
    for name in ("b_vs_new.json", "a_vs_new.json"):
        (tmp_path / name).write_text(json.dumps([bare]))
    assert [r.source for r in read_comparisons(f"alpaca_eval:{tmp_path}").records] == ["a_vs_new", "b_vs_new"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(PIPELINE) as (url, process), RewardClient(url) as client:
        wait_until_ready(client, process)
        yield url


def run(*arguments: Any) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    return result.exit_code, result.output if result.exit_code else result.stdout  # fingerprints go to stderr


QUESTIONS = [f"How do I keep {thing}?" for thing in ("bread", "a cat", "time", "quiet")]
ANSWERS = ["In a bag.", "I do not know.", "Well, that depends on what you want to do with it."]


@pytest.mark.slow
def test_agreement_with_a_service(url: str, tmp_path: Path) -> None:
    """The logits behind the table are those that the client gets."""
    rows = [{"prompt": q, "completions": ANSWERS, "ranks": [1, 3, 2]} for q in QUESTIONS]
    source = f"rankings:{write(tmp_path / 'mine.jsonl', rows)}"
    code, output = run("agreement", source, "--url", url, "--json")
    assert code == 0, output
    found = {r["model"]: r for r in json.loads(output) if (r["source"], r["strength"]) == ("all", None)}
    assert set(found) == {"preference", "absolute", "crs", "length"}
    with RewardClient(url) as client:
        scores = client.score([(q, a) for q in QUESTIONS for a in ANSWERS], model="preference").scores()
    hits = [scores[3 * i + a] > scores[3 * i + b] for i in range(4) for a, b in ((0, 1), (0, 2), (2, 1))]
    assert found["preference"]["accuracy"] == sum(hits) / 12
    code, output = run("margins", source, "--url", url, "--model", "preference", "--html", tmp_path / "m.html")
    assert code == 0, output
    assert (tmp_path / "m.html").read_text().count("<svg") == 3


@pytest.mark.slow
def test_best_of_n_with_a_service_and_a_served_gold(url: str, tmp_path: Path) -> None:
    labels = [{"prompt": q, "completion": a, "label": k / 2} for q in QUESTIONS for k, a in enumerate(ANSWERS)]
    source = f"labels:{write(tmp_path / 'mine.jsonl', labels)}"
    code, output = run("best-of-n", source, "--url", url, "--json")
    assert code == 0, output
    found = {(r["model"], r["n"]): r["gold"] for r in json.loads(output)}
    assert found["gold itself", 1] == found["crs", 1] == pytest.approx(0.5)
    assert found["gold itself", 2] == pytest.approx((1 + 1 + 0.5) / 3)
    code, output = run("best-of-n", source, "--url", url, "--model", "preference", "--gold", "absolute", "--json")
    assert code == 0, output
    assert {r["model"] for r in json.loads(output)} == {"preference", "length", "gold itself"}
    rollouts = (
        f"completions:{write(tmp_path / 'fresh.jsonl', [{'prompt': q, 'completions': ANSWERS} for q in QUESTIONS])}"
    )
    code, printed = run("best-of-n", rollouts, "--url", url)
    assert (code, "--gold" in printed) == (2, True)
    code, again = run("best-of-n", rollouts, "--url", url, "--model", "preference", "--gold", "absolute", "--json")
    assert code == 0
    assert [r["gold"] for r in json.loads(again)] == [r["gold"] for r in json.loads(output)]
    assert {(tuple(r["fingerprints"]), len(r["failures"])) for r in json.loads(again)} == {
        (("preference", "absolute"), 0)
    }


@pytest.mark.slow
def test_completions_that_cannot_be_scored_are_dropped_and_reported(url: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": q, "chosen": "<|im_end|>" if i == 0 else "Yes.", "rejected": "No."} for i, q in enumerate(QUESTIONS)
    ]
    code, output = run(
        "agreement", f"preferences:{write(tmp_path / 'x.jsonl', rows)}", "--url", url, "--model", "preference"
    )
    assert code == 0, output
    assert "dropped with all comparisons to them: 1 special_tokens. Kept: 3 of 4 prompts, 0" in " ".join(output.split())
    code, output = run(
        "margins", f"preferences:{tmp_path / 'x.jsonl'}", "--url", url, "--model", "preference", "--json"
    )
    assert (code, [r["failures"] for r in json.loads(output)]) == (0, [{"special_tokens": 1}] * 2)
    code, output = run("agreement", f"preferences:{tmp_path / 'x.jsonl'}", "--url", url, "--model", "nobody")
    assert (code, "'nobody' is not served; the served models are" in output) == (2, True)


@pytest.mark.slow
def test_agreement_over_the_published_rows_and_ballots_with_a_service(url: str, tmp_path: Path) -> None:
    """Chat markup, models that only `generator` names, over-long completions, and a source of ties alone."""
    rows = [
        {"instruction": f"<|im_start|>user\n{q}<|im_end|>\n", "output_1": ANSWERS[0], "output_2": ANSWERS[1]}
        | {"generator": "new", "preference": 1 + i % 2}
        for i, q in enumerate(QUESTIONS)
    ]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    tied = {"prompt": "?!", "responses": {"a": "Yes.", "b": "No.", "c": "<|im_end|>"}}
    ballots = [{"ranks": {"a": 1, "b": 1, "c": 3}}] * 2
    (tmp_path / "v.json").write_text(json.dumps({"format": "assay-ballots", "prompts": [tied | {"ballots": ballots}]}))
    given_ = (f"alpaca_eval:{tmp_path / 'x.json'}", f"ballots:{tmp_path / 'v.json'}", "--url", url, "--json")
    for command in ("agreement", "margins"):
        code, output = run(command, *given_, "--reference", "base")
        assert code == 0, output
        found = {r["source"]: r for r in json.loads(output) if r["model"] == "crs"}
        assert {name: numbers["n"] for name, numbers in found.items()} == {"x": 4, "v": 0, "all": 4}
        assert found["all"]["failures"] == {"special_tokens": 1}
        assert (found["v"]["asked"], found["v"]["kept"], found["v"]["kept_in_part"]) == (5, 5, 1)
        if command == "agreement":
            assert (found["v"]["ties"], found["all"]["ties"], found["v"]["accuracy"]) == (2, 2, None)


@pytest.mark.slow
def test_scores_of_many_calls_are_put_together_in_order(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call's deadline is for at most so many items; here for 7 of 24."""
    monkeypatch.setattr(served_scores, "CALL_ITEMS", 7)
    items = [Item.of(q, f"{a} {k}") for q in QUESTIONS for a in ANSWERS for k in range(2)]
    candidates = [Candidates("s", str(i), tuple(items[i : i + 4]), ()) for i in range(0, len(items), 4)]
    with RewardClient(url) as client:
        found = served_scores.fetch_scores(candidates, select_candidates, client, ["preference", "crs"])
        together = client.score([(item.prompt[-1].content, item.completion) for item in items], model="crs").scores()
    assert [score for row in found.by_model["crs"] for score in row] == list(together)


def test_a_model_that_changes_between_calls_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that was restarted with other weights between two calls."""
    monkeypatch.setattr(served_scores, "CALL_ITEMS", 1)
    fingerprints = iter("ab")

    def answer(request: httpx.Request) -> httpx.Response:
        return Wire.answer(request, json=Wire.scored(json.loads(request.content), next(fingerprints)))

    candidates = [Candidates("s", "g", (Item.of("q", "1"), Item.of("q", "2")), ())]
    with (
        RewardClient("http://service", transport=httpx.MockTransport(answer)) as client,
        pytest.raises(FingerprintChanged),
    ):
        served_scores.fetch_scores(candidates, select_candidates, client, ["p"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing:x", "not of the form FORMAT:PATH; FORMAT is one of hh"),
        ("preferences:absent.jsonl", "no such file or folder"),
        ("preferences:/", "the last part of the path is the name of the source"),
        (
            "alpaca_eval:tests/client",
            "tests/client: the folder has no files *.jsonl, *.jsonl.gz, *.json, *.json.gz, *.parquet",
        ),
    ],
)
def test_a_source_that_does_not_exist_is_an_error(given: str, message: str) -> None:
    code, output = run("agreement", given)
    assert (code, message in output) == (2, True), output


def test_an_unreachable_service_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    code, output = run("agreement", f"preferences:{source}", "--url", "http://127.0.0.1:9")
    assert (code, "assay evaluate agreement: " in output) == (2, True), output
