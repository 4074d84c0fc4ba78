"""Questions as bytes and answers as checked values: whatever breaks the wire is refused, never repaired."""

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay_client import _answers as answers
from assay_client import _protocol as p
from assay_client.errors import FingerprintChanged, InvalidAnswer, InvalidInput
from assay_client.results import RankResult
from assay_client.types import Item, Score, ScoreFailure, ScoreResult

if TYPE_CHECKING:
    from tests.client.conftest import Wire

ITEMS = [("p", "1.5"), ("p", "bad"), ("p", "-2")]


def asked(call: p.Call[Any]) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(call.body() or b"")
    return body


def answered(wire: "type[Wire]") -> dict[str, Any]:
    """An honest answer to `ITEMS`, to be broken."""
    return wire.scored(asked(p.build_score_calls(ITEMS, {}, 64)[0]))


def parse(body: dict[str, Any], count: int = 3) -> ScoreResult:
    return answers.parse_score(json.dumps(body).encode(), [None] * count, 0)


def test_a_request_says_what_was_asked_and_nothing_else() -> None:
    (call,) = p.build_score_calls([Item(prompt="p", completion="é", id="a")], p.build_options(model="crs"), 64)
    assert call.path == "/v1/score"
    assert call.body() == '{"model": "crs", "items": [{"prompt": "p", "completion": "é", "id": "a"}]}'.encode()


def test_an_answer_is_read_whole(wire: "type[Wire]") -> None:
    result = parse(answered(wire))
    first, second, third = result.data
    assert isinstance(first, Score)
    assert (first.index, first.score, first.signals["preference"].logit) == (0, 1.5, 1.5)
    assert first.signals["preference"].prob is None
    assert isinstance(second, ScoreFailure)
    assert (second.index, second.error.code, second.error.retryable) == (1, "special_token", False)
    assert isinstance(third, Score)
    assert (result.model, result.fingerprint) == ("crs", "f1")
    assert result.provenance.blend is not None
    assert result.provenance.blend.weights == {"preference": 1.0}
    assert result.provenance.signals["preference"].adapter_sha256 is None


def test_rows_out_of_order_are_put_in_order(wire: "type[Wire]") -> None:
    body = answered(wire)
    body["data"].reverse()
    assert [row.index for row in parse(body).data] == [0, 1, 2]
    assert parse(body).data[0] == parse(answered(wire)).data[0]


def test_unknown_fields_of_a_newer_server_are_ignored(wire: "type[Wire]") -> None:
    body = answered(wire)
    body["usage"] = {"tokens": 3}
    body["data"][0]["rank"] = 1
    assert parse(body) == parse(answered(wire))


BROKEN = {
    "score null": (lambda body: body["data"][0].update(score=None), "expected a finite number, got null"),
    "score missing": (lambda body: body["data"][0].pop("score"), "data.0..score: expected a finite number"),
    "score NaN": (lambda body: body["data"][0].update(score=float("nan")), "NaN is not JSON"),
    "score infinite": (lambda body: body["data"][0].update(score=float("inf")), "Infinity is not JSON"),
    "score text": (lambda body: body["data"][0].update(score="1.5"), "expected a finite number"),
    "score true": (lambda body: body["data"][0].update(score=True), "expected a finite number"),
    "score beyond floats": (lambda body: body["data"][0].update(score=10**400), "expected a finite number"),
    "logit null": (
        lambda body: body["data"][0]["signals"]["preference"].update(logit=None),
        "data.0..signals.preference.logit",
    ),
    "tokens negative": (
        lambda body: body["data"][0]["signals"]["preference"].update(prompt_tokens=-1),
        "prompt_tokens: expected a count, got -1",
    ),
    "tokens fraction": (
        lambda body: body["data"][0]["signals"]["preference"].update(prompt_tokens=1.5),
        "prompt_tokens: expected a count, got 1.5",
    ),
    "signals missing": (lambda body: body["data"][0].pop("signals"), "signals: expected an object"),
    "a row too few": (lambda body: body["data"].pop(), "2 rows do not match 3 items one to one"),
    "a row too many": (
        lambda body: body["data"].append({**body["data"][0], "index": 3}),
        "index 3 is not one of the 3 items",
    ),
    "an index twice": (lambda body: body["data"][2].update(index=0), "3 rows do not match 3 items one to one"),
    "an index below 0": (lambda body: body["data"][2].update(index=-1), "index -1 is not one of the 3 items"),
    "an index that is true": (lambda body: body["data"][1].update(index=True), "index true is not one of the 3 items"),
    "an id from nowhere": (lambda body: body["data"][0].update(id="z"), "the id of item 0 came back changed"),
    "score and error": (lambda body: body["data"][1].update(score=0.0), "both a score and an error"),
    "error without code": (
        lambda body: body["data"][1]["error"].pop("code"),
        "data.1..error.code: expected text, got null",
    ),
    "another object": (lambda body: body.update(object="rank"), "expected an answer of type list, got .rank"),
    "data is no list": (lambda body: body.update(data={}), "data: expected a list, got {}"),
    "no provenance": (lambda body: body.pop("provenance"), "provenance: expected an object"),
    "no fingerprint": (lambda body: body["provenance"].pop("fingerprint"), "fingerprint: expected text"),
    "weight null": (lambda body: body["provenance"]["blend"]["weights"].update(x=None), "weights.x"),
    "model is a number": (lambda body: body.update(model=3), "answer.model: expected text or null, got 3"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_answer_that_breaks_the_wire_is_refused(name: str, wire: "type[Wire]") -> None:
    breaks, says = BROKEN[name]
    body = answered(wire)
    breaks(body)  # type: ignore[no-untyped-call]
    with pytest.raises(InvalidAnswer, match=says):
        parse(body)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"null", b"[" * 100_000], ids=repr)
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidAnswer):
        answers.parse_score(body, [], 0)


@given(
    st.lists(
        st.tuples(st.one_of(st.just("bad"), st.floats(-9, 9).map(repr)), st.one_of(st.none(), st.text())),
        max_size=40,
    ),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_chunks_merged_lose_nothing_and_keep_the_order(
    wire: "type[Wire]", given_items: list[tuple[str, str | None]], chunk_size: int, random: Any
) -> None:
    items = [Item(prompt="p", completion=text, id=name) for text, name in given_items]
    calls = p.build_score_calls(items, {}, chunk_size)
    assert all(len(asked(call)["items"]) <= chunk_size for call in calls)
    parts = []
    for call in calls:
        body = wire.scored(asked(call))
        random.shuffle(body["data"])
        parts.append(call.parse(json.dumps(body).encode()))
    random.shuffle(parts)
    data = answers.merge_scores(parts).data
    assert [row.index for row in data] == list(range(len(items)))
    assert [row.id for row in data] == [name for _, name in given_items]
    assert [repr(row.score) if isinstance(row, Score) else "bad" for row in data] == [text for text, _ in given_items]


def test_chunks_of_two_models_are_not_merged(wire: "type[Wire]") -> None:
    first, second = p.build_score_calls([("p", "1"), ("p", "2")], {}, 1)
    parts = [
        first.parse(json.dumps(wire.scored(asked(first), "f1")).encode()),
        second.parse(json.dumps(wire.scored(asked(second), "f2")).encode()),
    ]
    with pytest.raises(FingerprintChanged) as raised:
        answers.merge_scores(parts)
    assert (raised.value.first, raised.value.second) == ("f1", "f2")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "crs", "weights": {"preference": 1.0}}, "exclude each other"),
        ({"weights": {"preference": float("nan")}}, "weight of `preference`"),
        ({"truncation": "right"}, "`truncation`"),
        ({"top_n": 0}, "`top_n`"),
    ],
)
def test_contradictory_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        p.build_options(**options)


def test_a_malformed_item_is_named_by_its_index() -> None:
    with pytest.raises(InvalidInput, match=r"^items\[1\]: an item has exactly one of"):
        p.build_score_calls([("p", "c"), {"prompt": "p"}], {}, 64)


def test_text_that_utf8_cannot_hold_is_refused_before_it_is_sent() -> None:
    (call,) = p.build_score_calls([("p", "\ud800")], {}, 64)
    with pytest.raises(InvalidInput, match="cannot be sent"):
        call.body()


def ranking(wire: "type[Wire]", top_n: int | None = None) -> tuple[p.Call[RankResult], dict[str, Any]]:
    named = {"completion": "3", "id": "c", "finish_reason": "length"}
    completions: list[p.CompletionLike] = ["1", named, "bad", "2"]
    call = p.build_rank_call("p", completions, p.build_options(top_n=top_n))
    return call, wire.ranked(asked(call))


def test_a_ranking_is_best_first_with_the_failed_apart(wire: "type[Wire]") -> None:
    call, body = ranking(wire)
    result = call.parse(json.dumps(body).encode())
    assert asked(call)["completions"][1] == {"completion": "3", "finish_reason": "length", "id": "c"}
    assert [(row.index, row.id, row.score, row.margin) for row in result.results] == [
        (1, "c", 3.0, 1.0),
        (3, None, 2.0, 1.0),
        (0, None, 1.0, None),
    ]
    assert [row.index for row in result.errors] == [2]


def test_top_n_shortens_the_ranking(wire: "type[Wire]") -> None:
    call, body = ranking(wire, top_n=2)
    assert [row.index for row in call.parse(json.dumps(body).encode()).results] == [1, 3]


@pytest.mark.parametrize(
    "breaks",
    [
        lambda body: body["results"].pop(),
        lambda body: body["results"].reverse(),
        lambda body: body["errors"].clear(),
        lambda body: body["errors"].extend(body["errors"]),
        lambda body: body["results"][0].update(index=3),
        lambda body: body["results"].append(body["errors"].pop()),
        lambda body: body["errors"].append(body["results"].pop()),
        lambda body: body["results"][0].update(margin="1"),
    ],
    ids=[
        "too few",
        "not sorted",
        "error lost",
        "error twice",
        "twice",
        "error ranked",
        "rank as error",
        "margin",
    ],
)
def test_a_ranking_that_breaks_the_wire_is_refused(breaks: Any, wire: "type[Wire]") -> None:
    call, body = ranking(wire)
    breaks(body)
    with pytest.raises(InvalidAnswer):
        call.parse(json.dumps(body).encode())


def test_a_comparison_is_read_whole(wire: "type[Wire]") -> None:
    call = p.build_compare_call([{"role": "user", "content": "p"}], "3", "1", {})
    result = call.parse(json.dumps(wire.compared(asked(call))).encode())
    assert result.signals["preference"].margin == 2.0
    assert result.signals["preference"].prob_a == 0.75
    assert result.signals["absolute"].prob_a is None
    assert result.signals["absolute"].b.prob == 0.25
    assert result.blends == {"crs": 0.5}
    assert result.provenance.blend is None


def test_models_keep_all_details_of_the_server() -> None:
    body = {
        "object": "list",
        "data": [{"id": "crs", "object": "model", "kind": "blend", "weights": {"a": 1}}],
    }
    (card,) = answers.parse_models(json.dumps(body).encode())
    assert (card.id, card.kind, card.details["weights"]) == ("crs", "blend", {"a": 1})
