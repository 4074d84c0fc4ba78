"""What differs between two services: the numbers, the rows that are read, and the command."""

import asyncio
import json
import math
import random
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from scipy import stats
from typer.testing import CliRunner

from assay_client import _spread, cli
from assay_client._difference import Difference
from assay_client._rows import Fields
from assay_client._spread import Spread, Worst, compute_kendall, compute_ranks
from assay_client.client import AsyncRewardClient
from assay_client.diff import DiffRow, diff_file
from assay_client.errors import FingerprintChanged, InvalidAnswer, InvalidInput, ServerError, Timeout
from assay_client.messages import Message
from assay_client.types import Item, ItemError, Score, ScoreFailure
from tests.client.test_client_bulk import jsonl
from tests.client.test_client_slow import assay, slow, wait_for

if TYPE_CHECKING:
    from tests.client.conftest import Loopback, ReceivedRequest, Reply, Script, Wire

    Start = Callable[[Script], Loopback]

__all__ = ["assay", "slow"]

# --- the numbers -----------------------------------------------------------------------------------------------------


def test_the_spread_of_few_pairs() -> None:
    spread = Spread()
    for old, new in [(1.0, 1.0), (2.0, 2.5), (3.0, 2.0), (0.0, -0.0)]:
        spread.add(old, new)
    assert (spread.count, spread.equal, spread.largest) == (4, 1, 1.0)  # -0.0 has other bits than 0.0
    assert spread.mean == -0.125
    assert spread.sd == pytest.approx(0.6291528696058958)  # of 0, 0.5, -1, 0
    assert spread.spearman == pytest.approx(0.8)  # ranks 2 3 4 1 and 2 4 3 1


def test_the_spread_of_many_pairs_is_that_of_scipy() -> None:
    generator = random.Random(3)
    old = [generator.gauss(5, 1) for _ in range(2000)]
    new = [round(x + generator.gauss(0.01, 0.5), 1) for x in old]  # with ties
    spread = Spread()
    for x, y in zip(old, new, strict=True):
        spread.add(x, y)
    assert spread.mean == pytest.approx(statistics.mean(y - x for x, y in zip(old, new, strict=True)))
    assert spread.sd == pytest.approx(statistics.stdev(y - x for x, y in zip(old, new, strict=True)))
    assert spread.spearman == pytest.approx(stats.spearmanr(old, new).statistic)
    assert not spread.is_sampled


def test_many_pairs_are_sampled_evenly_and_always_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_spread, "SAMPLE_PAIRS", 500)
    found = []
    for _ in range(2):
        spread = Spread()
        for n in range(20_000):
            spread.add(float(n), float(n))
        found.append(spread)
    assert (len(found[0]._sample), found[0].is_sampled, found[0].spearman) == (500, True, 1.0)
    assert found[0]._sample == found[1]._sample
    assert statistics.mean(old for old, _ in found[0]._sample) == pytest.approx(10_000, rel=0.1)


def test_correlations_that_are_not_defined_are_none() -> None:
    assert (Spread().spearman, Spread().sd) == (None, None)
    constant = Spread()
    for new in (1.0, 2.0):
        constant.add(0.0, new)
    assert constant.spearman is None
    assert compute_kendall([1.0, 1.0], [1.0, 2.0]) is None
    assert compute_kendall([1.0], [1.0]) is None


def test_ranks_and_kendall_are_those_of_scipy() -> None:
    generator = random.Random(5)
    for _ in range(50):
        old, new = ([float(generator.randrange(6)) for _ in range(9)] for _ in range(2))
        assert compute_ranks(old) == list(stats.rankdata(old))
        expected = float(stats.kendalltau(old, new).statistic)
        tau = compute_kendall(old, new)
        assert math.isnan(expected) if tau is None else tau == pytest.approx(expected)


def test_the_worst_rows_are_kept() -> None:
    worst = Worst(2)
    for size, name in [(1.0, "a"), (3.0, "b"), (3.0, "c"), (2.0, "d"), (3.0, "e")]:
        worst.add(size, {"name": name})
    assert [row["name"] for row in worst.list_rows()] == ["b", "c"]
    none = Worst(0)
    none.add(1.0, {})
    assert none.list_rows() == []


def outcomes(*scores: float | None) -> list[Score | ScoreFailure]:
    """The answers for one row; None is an item that failed."""
    failure = ItemError("too_long", "is too long", None, retryable=False)
    return [
        ScoreFailure(n, None, failure) if score is None else Score(n, None, score, {}) for n, score in enumerate(scores)
    ]


def test_picks_orders_flips_and_failures_are_counted() -> None:
    found = Difference(("u1", "u2"))
    found.add("item", "x", outcomes(1.0), outcomes(1.25))
    found.add("group", None, outcomes(3.0, 2.0, 1.0), outcomes(3.0, 1.0, 2.0))  # another order, the same pick
    found.add("group", 7, outcomes(3.0, 2.0, 1.0), outcomes(1.0, 2.5, 0.0))  # another pick
    found.add("group", None, outcomes(1.0, 1.0), outcomes(2.0, 2.0))  # equal scores: the first is the pick
    found.add("pair", None, outcomes(1.0, 0.0), outcomes(0.0, 4.0))  # right, then wrong
    found.add("pair", None, outcomes(0.0, 1.0), outcomes(0.0, 3.0))  # wrong on both sides
    found.add("pair", None, outcomes(1.0, 1.0), outcomes(2.0, 1.0))  # a tie is not right
    found.add("group", "f", outcomes(1.0, None), outcomes(1.0, 2.0))
    found.add("item", None, outcomes(None), outcomes(None))
    reported: Any = found.to_json()
    assert (reported["rows"], reported["failed"], reported["old"]["failed"], reported["new"]["failed"]) == (9, 2, 2, 1)
    assert reported["failures"] == [
        {"index": 7, "id": "f", "side": "old", "completion": 1, "code": "too_long", "message": "is too long"},
        {"index": 8, "side": "old", "completion": 0, "code": "too_long", "message": "is too long"},
        {"index": 8, "side": "new", "completion": 0, "code": "too_long", "message": "is too long"},
    ]
    assert (reported["scores"]["count"], reported["scores"]["bit_equal"], reported["scores"]["largest"]) == (15, 3, 4.0)
    assert reported["scores"]["worst"][:2] == [
        {"index": 4, "completion": 1, "old": 0.0, "new": 4.0, "difference": 4.0},
        {"index": 2, "id": 7, "completion": 0, "old": 3.0, "new": 1.0, "difference": -2.0},
    ]
    groups, pairs = reported["groups"], reported["pairs"]
    assert (groups["count"], groups["changed_picks"], groups["changed_orders"]) == (3, 1, 2)
    assert groups["kendall"] == pytest.approx((1 / 3 + 1 / 3) / 2)  # two of three pairs agree, twice; ties have none
    assert groups["worst"] == [{"index": 2, "id": 7, "old_pick": 0, "new_pick": 1, "margin": 1.5}]
    assert (pairs["count"], pairs["flips"]) == (3, 2)
    assert (pairs["old_accuracy"], pairs["new_accuracy"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert pairs["worst"] == [
        {"index": 4, "old_margin": 1.0, "new_margin": -4.0},
        {"index": 6, "old_margin": 0.0, "new_margin": 1.0},
    ]
    json.dumps(reported, allow_nan=False)


def test_the_first_failed_rows_are_listed_with_each_side_that_failed() -> None:
    found = Difference(("u1", "u2"), 2)
    for old, new in [(None, 1.0), (None, None), (None, None)]:
        found.add("item", None, outcomes(old), outcomes(new))
    assert [(row["index"], row["side"]) for row in found.failures] == [(0, "old"), (1, "old"), (1, "new")]
    assert (found.failed, found.sides[0].failed, found.sides[1].failed) == (3, 3, 2)


def test_only_completions_that_differ_are_listed() -> None:
    found = Difference(("u1", "u2"))
    found.add("item", None, outcomes(1.0), outcomes(1.0))
    found.add("item", None, outcomes(0.0), outcomes(-0.0))
    assert found.worst.list_rows() == []
    found.add("item", None, outcomes(2.0), outcomes(2.5))
    assert [row["index"] for row in found.worst.list_rows()] == [2]


def test_a_tie_is_broken_by_the_place_on_both_sides() -> None:
    found = Difference(("u1", "u2"))
    found.add("group", None, outcomes(1.0, 2.0, 2.0), outcomes(1.0, 2.0, 3.0))  # the new one no longer sees a tie
    found.add("group", None, outcomes(1.0, 2.0), outcomes(2.0, 2.0))  # the new one sees one, and picks the first
    found.add("group", None, outcomes(2.0, 1.0), outcomes(2.0, 2.0))
    assert found.groups.changed_picks == 2
    assert [(row["index"], row["margin"]) for row in found.groups.worst.list_rows()] == [(0, 1.0), (1, 0.0)]


def test_limits_are_exceeded_above_and_not_at_their_value() -> None:
    found = Difference(("u1", "u2"))
    found.add("group", None, outcomes(1.0, 0.0), outcomes(0.0, 1.0))
    found.add("group", None, outcomes(1.0, 0.0), outcomes(1.0, 0.0))
    assert found.find_breaches(1.0, 0.5) == found.find_breaches(None, None) == []
    assert found.find_breaches(0.5, 0.25) == [
        "the largest difference is 1, more than 0.5",
        "1 of 2 picks changed, more than a share of 0.25",
    ]
    single = Difference(("u1", "u2"))
    single.add("item", None, outcomes(1.0), outcomes(1.0))
    with pytest.raises(InvalidInput, match="--max-changed-picks needs rows with `completions`"):
        single.find_breaches(None, 0.1)
    nothing = Difference(("u1", "u2"))
    assert nothing.find_breaches(None, None) == []
    for limits in ((1.0, None), (None, 0.5)):
        with pytest.raises(InvalidInput, match="the file has no rows, so that no limit can be checked"):
            nothing.find_breaches(*limits)


# --- the rows --------------------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "p"}
CHOSEN, REJECTED = ({"role": "assistant", "content": text} for text in ("2", "1"))


@pytest.mark.parametrize(
    ("row", "shape", "texts"),
    [
        ({"prompt": "p", "completion": "1"}, "item", ["1"]),
        ({"prompt": "p", "completions": ["1", {"completion": "2", "finish_reason": "length"}]}, "group", ["1", "2"]),
        ({"messages": [USER], "completions": ["1", "2"]}, "group", ["1", "2"]),
        ({"prompt": "p", "chosen": "2", "rejected": "1"}, "pair", ["2", "1"]),
        ({"prompt": [USER], "chosen": [CHOSEN], "rejected": [REJECTED]}, "pair", ["2", "1"]),  # TRL
        ({"chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]}, "pair", ["2", "1"]),  # TRL, implicit prompt
        ({"prompt": "p", "chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]}, "pair", ["2", "1"]),  # UltraFeedback
        ({"prompt": [USER], "chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]}, "pair", ["2", "1"]),
        # UltraFeedback, with the chosen conversation twice
        (
            {"messages": [USER, CHOSEN], "chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]},
            "pair",
            ["2", "1"],
        ),
        # As tables write rows of several forms
        ({"prompt": "p", "completion": "1", "completions": None, "chosen": None, "rejected": None}, "item", ["1"]),
        ({"prompt": "p", "completion": None, "completions": ["1", "2"], "messages": None}, "group", ["1", "2"]),
    ],
)
def test_rows_of_all_shapes_are_read(row: dict[str, Any], shape: str, texts: list[str]) -> None:
    read = DiffRow.of({**row, "id": 3}, Fields())
    assert (read.shape, read.id) == (shape, 3)
    found = []
    for item in read.items:
        last = item.messages[-1] if item.messages else None
        found.append(last.content if isinstance(last, Message) else item.completion)
        prompt: Any = item.prompt if item.prompt is not None else item.messages
        assert prompt == "p" or prompt[0] == Message("user", "p")
    assert found == texts


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "p"}, "an item has `prompt` with `completion`"),
        ({"prompt": "q", "chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]}, "`chosen` is a conversation"),
        ({"chosen": "2", "rejected": "1"}, "exactly one of `prompt` with `completion`"),
        ({"prompt": "p", "completions": []}, "at least one completion"),
        ({"prompt": "p", "completions": ["1"], "chosen": "2", "rejected": "1"}, "has `chosen` and `completions`, so"),
        ({"prompt": "p", "completion": "1", "chosen": "2", "rejected": "1"}, "has `chosen` and `completion`, so"),
        ({"prompt": "p", "completion": "1", "completions": ["2"]}, "has `completions` and `completion`, so"),
        ({"prompt": 5, "chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]}, "does not begin with the prompt"),
        ({"prompt": [], "chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]}, "does not begin with the prompt"),
        ({"prompt": "p", "chosen": [], "rejected": [USER, REJECTED]}, "does not begin with the prompt"),
        ({"prompt": "p", "completions": [{"prompt": "q", "completion": "1"}]}, "must not have its own `prompt`"),
    ],
)
def test_a_malformed_row_is_refused(row: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        DiffRow.of(row, Fields())


def test_a_row_of_several_completions_is_as_long_as_all_of_them() -> None:
    assert (
        DiffRow("group", (Item(prompt="ab", completion="c"), Item(prompt="ab", completion="cd")), None, {}).chars == 7
    )


# --- two services ----------------------------------------------------------------------------------------------------


def serve(wire: "type[Wire]", shift: float, *fingerprints: str) -> httpx.MockTransport:
    """A service that adds `shift` to every score of an even number; the last fingerprint stays."""
    asked = 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        body = wire.scored(json.loads(request.content), fingerprints[min(asked, len(fingerprints)) - 1])
        for row in body["data"]:
            if "score" in row and row["score"] % 2 == 0:
                row["score"] += shift
        return wire.answer(request, json=body)

    return httpx.MockTransport(handler)


def compare(first: httpx.MockTransport, second: httpx.MockTransport, source: str, **options: Any) -> Difference:
    async def inner() -> Difference:
        async with (
            AsyncRewardClient("http://a.test", transport=first, chunk_size=4, max_retries=0) as old,
            AsyncRewardClient("http://b.test", transport=second, chunk_size=4, max_retries=0) as new,
        ):
            return await diff_file(old, new, source, **options)

    return asyncio.run(inner())


def test_two_services_are_compared_row_by_row(wire: "type[Wire]", tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": "p", "completion": str(n)} for n in range(30)]
    rows += [{"prompt": "p", "completions": [str(n), str(n + 1)]} for n in range(10)]
    rows += [{"prompt": "p", "chosen": str(n + 1), "rejected": str(n)} for n in range(20)]
    rows += [{"prompt": "p", "completions": ["1", "bad"]}]
    reported: list[Any] = []
    first, second = (serve(wire, shift, name) for shift, name in ((0.0, "f1"), (1.5, "f2")))
    found = compare(
        first, second, jsonl(tmp_path / "in.jsonl", rows), on_rows=lambda done, total: reported.append((done, total))
    )
    assert (found.rows, found.failed, found.scores.count) == (61, 1, 90)
    assert (found.scores.equal, found.scores.largest) == (45, 1.5)
    assert found.scores.mean == pytest.approx(0.75)
    # An even n overtakes n + 1; the best of (odd, even) stays the even one.
    assert (found.groups.count, found.groups.changed_picks) == (10, 5)
    assert (found.pairs.old_right, found.pairs.new_right, found.pairs.flips) == (20, 10, 10)
    assert [side.provenance and side.provenance.fingerprint for side in found.sides] == ["f1", "f2"]
    assert (reported[0], reported[-1]) == ((0, 61), (61, 61))


def test_a_service_that_is_replaced_ends_the_comparison(wire: "type[Wire]", tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": str(n)} for n in range(50)])
    with pytest.raises(FingerprintChanged) as changed:
        compare(serve(wire, 0.0, "f1"), serve(wire, 0.0, "f2", "f2", "f3"), source, urls=("http://a", "http://b"))
    assert {changed.value.first, changed.value.second} == {"f2", "f3"}
    assert changed.value.__notes__ == ["the new service, http://b"]


def test_a_refusal_of_either_service_ends_the_comparison(wire: "type[Wire]", tmp_path: Path) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        refusal = wire.refusal("model_not_found", retryable=False)
        return wire.answer(request, 404, json=refusal)

    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "1"}])
    sides = httpx.MockTransport(refuse), serve(wire, 0.0, "f")
    for first, second in (sides, sides[::-1]):
        with pytest.raises(ServerError, match="model_not_found") as failed:
            compare(first, second, source)
        name = "old" if first is sides[0] else "new"
        assert failed.value.__notes__ == [f"the {name} service, {name}"]


@pytest.mark.parametrize("silent", [0, 1])
def test_a_service_that_falls_silent_is_named(wire: "type[Wire]", tmp_path: Path, silent: int) -> None:
    async def hang(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError("awaited")

    def answer(request: httpx.Request) -> httpx.Response:
        return wire.answer(request, json=wire.honest(request.url.path, json.loads(request.content or b"{}")))

    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "1"}])
    lives, hangs = httpx.MockTransport(answer), httpx.MockTransport(hang)
    first, second = (lives, hangs) if silent else (hangs, lives)
    with pytest.raises(Timeout, match="no sign of life") as given_up:
        compare(first, second, source, silence_s=0.2)
    name = ("old", "new")[silent]
    assert given_up.value.__notes__ == [f"the {name} service, {name}"]


def test_a_score_that_is_not_finite_ends_the_comparison(wire: "type[Wire]", tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        body = wire.scored(json.loads(request.content))
        body["data"][0]["score"] = math.nan
        return wire.answer(request, content=json.dumps(body).encode())

    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "1"}])
    with pytest.raises(InvalidAnswer) as refused:
        compare(serve(wire, 0.0, "f"), httpx.MockTransport(answer), source)
    assert refused.value.__notes__ == ["the new service, new"]


def test_picks_that_no_row_has_are_an_error_before_anything_is_sent(tmp_path: Path) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise AssertionError("sent")

    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "1"}])
    with pytest.raises(InvalidInput, match="--max-changed-picks needs rows with `completions`"):
        compare(httpx.MockTransport(refuse), httpx.MockTransport(refuse), source, needs_picks=True)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def urls(loopback: "Start", wire: "type[Wire]", reply: "type[Reply]") -> list[str]:
    """Two services, of which the second turns the sign of every score and knows the model `crs2`."""

    def build_script(sign: float, name: str) -> "Script":
        def script(asked: "ReceivedRequest", number: int) -> "Reply":
            if asked.path != "/v1/score":
                return reply(wire.honest(asked.path, asked.body))
            body = wire.scored(asked.body, name)
            for row in body["data"]:
                if "score" in row:
                    row["score"] *= sign
            return reply(body)

        return script

    return [loopback(build_script(sign, name)).url for sign, name in ((1.0, "f1"), (-1.0, "f2"))]


def test_the_command_prints_a_table_and_the_worst_rows(urls: list[str], tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completions": ["1", "2"]}, {"prompt": "p", "chosen": "3", "rejected": "1"}]
    source = jsonl(tmp_path / "in.jsonl", rows)
    done = CliRunner().invoke(cli.app, ["diff", *urls, source, "--model", "crs", "--new-model", "crs2"])
    assert (done.exit_code, done.stderr) == (0, "")
    lines = [" ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()]
    assert f"old: {urls[0]}, crs, fingerprint f1, preference m@r" in lines
    assert f"new: {urls[1]}, crs2, fingerprint f2, preference m@r" in lines
    for line in (
        "completions 4",
        "of these bit-equal 0 of 4 (0.00%)",
        "new - old, mean -3.5",
        "new - old, largest 6",
        "Spearman -1.000000",
        "changed picks 1 of 1 (100.00%)",
        "Kendall, mean -1.000000",
        "old prefers chosen 1 of 1 (100.00%)",
        "new prefers chosen 0 of 1 (0.00%)",
        "flipped pairs 1 of 1 (100.00%)",
        "score: index 1, completion 0, old 3, new -3, difference -6",
        "pick: index 0, old_pick 1, new_pick 0, margin 1",
        "pair: index 1, old_margin 2, new_margin -2",
    ):
        assert line in lines


def test_the_command_writes_json_and_ends_with_1_beyond_a_limit(urls: list[str], tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completions": ["1", "2"]}])
    limits = ["--max-difference", "3.5", "--max-changed-picks", "0.5"]
    done = CliRunner().invoke(cli.app, ["diff", *urls, source, "--json", *limits])
    assert (done.exit_code, done.stderr) == (
        1,
        "the largest difference is 4, more than 3.5\n1 of 1 picks changed, more than a share of 0.5\n",
    )
    reported = json.loads(done.stdout)
    assert (reported["object"], reported["new"]["url"], reported["new"]["model"]) == ("difference", urls[1], "crs")
    assert reported["new"]["provenance"]["signals"]["preference"]["model"] == "m"
    within = ["--max-difference", "4", "--max-changed-picks", "1"]
    assert CliRunner().invoke(cli.app, ["diff", *urls, source, "-o", str(tmp_path / "d.json"), *within]).exit_code == 0
    assert json.loads((tmp_path / "d.json").read_text()) == reported


def test_a_row_without_a_score_ends_the_command_with_1(urls: list[str], tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "bad"}])
    done = CliRunner().invoke(cli.app, ["diff", *urls, source])
    assert done.exit_code == 1
    assert "failure: index 0, side old, completion 0, code special_token, message holds <s>" in done.stdout
    single = CliRunner().invoke(cli.app, ["diff", *urls, jsonl(tmp_path / "one", [{"prompt": "p", "completion": "1"}])])
    assert single.exit_code == 0
    nobody = CliRunner().invoke(cli.app, ["diff", urls[0], "http://127.0.0.1:25599", source])
    assert nobody.exit_code == 2
    assert nobody.stderr.startswith("assay: no service at http://127.0.0.1:25599")


def test_an_output_that_cannot_be_written_costs_no_scoring(
    loopback: "Start", wire: "type[Wire]", reply: "type[Reply]", tmp_path: Path
) -> None:
    server = loopback(lambda asked, number: reply(wire.honest(asked.path, asked.body)))
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "1"}])
    (tmp_path / "d.json.part").write_text("not ours")
    for target, says in (
        ("d.json", "is in the way"),
        ("d.parquet", "only `score` writes Parquet"),
        ("no/d.json", "No such file"),
    ):
        done = CliRunner().invoke(cli.app, ["diff", server.url, server.url, source, "-o", str(tmp_path / target)])
        assert (done.exit_code, done.stdout) == (2, "")
        assert says in done.stderr
    assert [asked.path for asked in server.asked if asked.path == "/v1/score"] == []


def test_keys_without_effect_and_an_equal_service_are_reported(urls: list[str], tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "1", "finish_reasn": "length"}])
    done = CliRunner().invoke(cli.app, ["diff", urls[0], urls[0], source])
    assert (done.exit_code, done.stderr) == (0, "not part of a row, without effect: finish_reasn\n")
    assert "score: " not in done.stdout


def test_the_command_names_the_service_that_refuses(
    urls: list[str], loopback: "Start", wire: "type[Wire]", reply: "type[Reply]", tmp_path: Path
) -> None:
    refusal = reply(wire.refusal("model_not_found", retryable=False), status=404)
    other = loopback(lambda asked, number: refusal if asked.path == "/v1/score" else reply({"version": "1"}))
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "1"}])
    done = CliRunner().invoke(cli.app, ["diff", urls[0], other.url, source, "-o", str(tmp_path / "d.json")])
    assert done.exit_code == 2
    assert done.stderr.startswith("assay: 404 model_not_found: no.")
    assert done.stderr.endswith(f"; the new service, {other.url}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("limit", ["nan", "-1"])
@pytest.mark.parametrize("name", ["--max-difference", "--max-changed-picks"])
def test_a_limit_that_nothing_exceeds_is_refused(name: str, limit: str) -> None:
    done = CliRunner().invoke(cli.app, ["diff", "http://a", "http://b", "-", name, limit])
    assert done.exit_code == 2
    assert name in done.stderr


def test_ctrl_c_ends_the_command_with_130_and_leaves_an_earlier_output(slow: Any, assay: Any, tmp_path: Path) -> None:
    server: Loopback = slow(0.05)
    jsonl(tmp_path / "in.jsonl", [{"prompt": "p" * 4000, "completion": str(n)} for n in range(400)])
    (tmp_path / "d.json").write_text("earlier")
    going = assay("diff", server.url, server.url, "in.jsonl", "-o", "d.json")
    wait_for(lambda: sum(asked.path == "/v1/score" for asked in server.asked) > 4)
    going.send_signal(signal.SIGINT)
    assert going.wait(20) == 130
    assert going.stderr.read() == "assay: interrupted\n"
    assert (tmp_path / "d.json").read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.json", "in.jsonl"]
