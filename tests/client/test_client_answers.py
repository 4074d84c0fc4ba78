"""Answers as checked values: whatever breaks the wire is refused with the path of its field, never repaired."""

import json
from collections.abc import Callable
from functools import reduce
from operator import getitem
from typing import TYPE_CHECKING, Any

import pytest

from assay_client import _answers as answers
from assay_client import _protocol as p
from assay_client.errors import InvalidAnswer
from assay_client.provenance import Preset
from assay_client.results import Comparison, RankResult, RenderedItem, RenderedSignal, RenderResult
from assay_client.types import Score, ScoreFailure, ScoreResult

if TYPE_CHECKING:
    from tests.client.conftest import Wire

ITEMS = [("p", "1.5"), ("p", "bad"), ("p", "-2")]
Break = Callable[[dict[str, Any]], object]


def asked(call: p.Call[Any]) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(call.encode_body() or b"")
    return body


def answered(wire: "type[Wire]") -> dict[str, Any]:
    """An honest answer to `ITEMS`, to be broken."""
    return wire.scored(asked(p.build_score_calls(ITEMS, {}, 64)[0]))


def parse(body: dict[str, Any], count: int = 3) -> ScoreResult:
    return answers.parse_score(json.dumps(body).encode(), [None] * count, range(count))


def test_the_preset_of_a_signal_is_read(wire: "type[Wire]") -> None:
    body = answered(wire)
    signals = body["provenance"]["signals"]
    name, *others = signals
    signals[name]["preset"] = {"name": "armorm", "sha256": "ab", "golden": "not run", "changed": ["dtype"]}
    read = parse(body).provenance.signals
    assert read[name].preset == Preset("armorm", "ab", "not run", ("dtype",))
    assert [read[other].preset for other in others] == [None] * len(others)


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


def test_indices_of_a_chunk_count_from_the_start_of_the_call(wire: "type[Wire]") -> None:
    body = json.dumps(answered(wire)).encode()
    assert [row.index for row in answers.parse_score(body, [None] * 3, [64, 67, 70]).data] == [64, 67, 70]


def test_unknown_fields_of_a_newer_server_are_ignored(wire: "type[Wire]") -> None:
    body = answered(wire)
    body["usage"] = {"tokens": 3}
    body["data"][0]["rank"] = 1
    body["data"][0]["signals"]["preference"]["entropy"] = None
    body["provenance"]["host"] = []
    assert parse(body) == parse(answered(wire))


@pytest.mark.parametrize(
    "path",
    [
        ("model",),
        ("provenance", "blend"),
        ("provenance", "blend", "name"),
        ("provenance", "signals", "preference", "adapter_sha256"),
        ("data", 1, "error", "param"),
        ("data", 0, "signals", "preference", "prob"),
        ("data", 0, "id"),
        ("data", 0, "error"),
    ],
    ids=str,
)
def test_a_field_that_may_be_null_may_be_missing(path: tuple[Any, ...], wire: "type[Wire]") -> None:
    missing, null = answered(wire), answered(wire)
    *steps, name = path
    reduce(getitem, steps, missing).pop(name, None)
    reduce(getitem, steps, null)[name] = None
    assert parse(missing) == parse(null)


def test_an_integer_is_a_score_and_every_float_keeps_its_bits(wire: "type[Wire]") -> None:
    body = answered(wire)
    body["data"][0]["score"] = 2
    body["data"][2]["score"] = -0.1234567890123456789e-300
    first, _, third = parse(body).data
    assert isinstance(first, Score)
    assert isinstance(third, Score)
    assert (type(first.score), first.score, third.score.hex()) == (float, 2.0, (-0.1234567890123456789e-300).hex())


def edit_signal(**fields: object) -> Break:
    return lambda body: body["data"][0]["signals"]["preference"].update(fields)


FIRST = r"^data\[0\]\.signals\.preference\."
BROKEN: dict[str, tuple[Break, str]] = {
    "score null": (lambda body: body["data"][0].update(score=None), r"^data\[0\]\.score: expected a value"),
    "score missing": (lambda body: body["data"][0].pop("score"), r"^data\[0\]\.score: expected a value"),
    "score NaN": (lambda body: body["data"][0].update(score=float("nan")), "not JSON: .*: NaN, "),
    "score infinite": (lambda body: body["data"][0].update(score=float("inf")), "not JSON: .*: Infinity, "),
    "score text": (
        lambda body: body["data"][0].update(score="1.5"),
        r'^data\[0\]\.score: expected `float . null`, got `str` \(value: "1.5"\)$',
    ),
    "score true": (
        lambda body: body["data"][0].update(score=True),
        r"^data\[0\]\.score: .* got `bool` \(value: true\)$",
    ),
    "score beyond floats": (
        lambda body: body["data"][0].update(score=10**400),
        r"^data\[0\]\.score: number out of range \(value: 10{79}\)$",
    ),
    "logit null": (edit_signal(logit=None), FIRST + r"logit: expected `float`, got `null` \(value: null\)$"),
    "logit missing": (
        lambda body: body["data"][0]["signals"]["preference"].pop("logit"),
        r"^data\[0\]\.signals\.preference: object missing required field `logit`",
    ),
    "prob text": (edit_signal(prob="0.5"), FIRST + r"prob: expected `float . null`, got `str`"),
    "tokens negative": (edit_signal(prompt_tokens=-1), FIRST + r"prompt_tokens: expected `int` >= 0 \(value: -1\)$"),
    "tokens fraction": (edit_signal(prompt_tokens=1.5), FIRST + r"prompt_tokens: .* got `float` \(value: 1.5\)$"),
    "tokens whole float": (edit_signal(prompt_tokens=1.0), FIRST + r"prompt_tokens: .* got `float` \(value: 1.0\)$"),
    "tokens true": (edit_signal(dropped_tokens=True), FIRST + r"dropped_tokens: .* got `bool` \(value: true\)$"),
    "signals missing": (lambda body: body["data"][0].pop("signals"), r"^data\[0\]\.signals: expected a value"),
    "a signal null": (lambda body: body["data"][0]["signals"].update(x=None), r"^data\[0\]\.signals\.x: .*`null`"),
    "a row null": (lambda body: body["data"].insert(0, None), r"^data\[0\]: expected `object`, got `null`"),
    "a row too few": (lambda body: body["data"].pop(), "2 rows do not match 3 items one to one"),
    "a row too many": (
        lambda body: body["data"].append({**body["data"][0], "index": 3}),
        "index 3 is not one of the 3 items",
    ),
    "an index twice": (lambda body: body["data"][2].update(index=0), "3 rows do not match 3 items one to one"),
    "an index below 0": (lambda body: body["data"][2].update(index=-1), "index -1 is not one of the 3 items"),
    "an index that is true": (
        lambda body: body["data"][1].update(index=True),
        r"^data\[1\]\.index: expected `int`, got `bool` \(value: true\)$",
    ),
    "an index that is a float": (lambda body: body["data"][2].update(index=2.0), r"^data\[2\]\.index: .* got `float`"),
    "an index missing": (lambda body: body["data"][2].pop("index"), r"^data\[2\]: .* missing required field `index`"),
    "an id from nowhere": (lambda body: body["data"][0].update(id="z"), "the id of item 0 came back changed"),
    "an id that is a number": (lambda body: body["data"][0].update(id=0), r"^data\[0\]\.id: .* got `int`"),
    "score and error": (lambda body: body["data"][1].update(score=0.0), r"^data\[1\]: .* both a score and an error"),
    "error without code": (
        lambda body: body["data"][1]["error"].pop("code"),
        r"^data\[1\]\.error: object missing required field `code` \(value: \{\"message\": ",
    ),
    "error is text": (lambda body: body["data"][1].update(error="bad"), r"^data\[1\]\.error: .* got `str`"),
    "signals beside an error": (lambda body: body["data"][1].update(signals=3), r"^data\[1\]\.signals: .* got `int`"),
    "error null": (lambda body: body["data"][1].update(error=None), r"^data\[1\]\.score: .* the row has no error"),
    "retryable is a number": (
        lambda body: body["data"][1]["error"].update(retryable=0),
        r"^data\[1\]\.error\.retryable: expected `bool`, got `int` \(value: 0\)$",
    ),
    "another object": (lambda body: body.update(object="rank"), r'^object: expected `list` \(value: "rank"\)$'),
    "no object": (lambda body: body.pop("object"), "^answer: object missing required field `object`"),
    "data is no list": (lambda body: body.update(data={}), r"^data: expected `array`, got `object` \(value: {}\)$"),
    "no data": (lambda body: body.pop("data"), "^answer: object missing required field `data`"),
    "no provenance": (lambda body: body.pop("provenance"), "^answer: object missing required field `provenance`"),
    "no fingerprint": (
        lambda body: body["provenance"].pop("fingerprint"),
        "^provenance: object missing required field `fingerprint`",
    ),
    "fingerprint null": (
        lambda body: body["provenance"].update(fingerprint=None),
        "^provenance.fingerprint: expected `str`, got `null`",
    ),
    "no weights": (
        lambda body: body["provenance"]["blend"].pop("weights"),
        "^provenance.blend: object missing required field `weights`",
    ),
    "weight null": (
        lambda body: body["provenance"]["blend"]["weights"].update(x=None),
        "^provenance.blend.weights.x: expected `float`, got `null`",
    ),
    "weight true": (
        lambda body: body["provenance"]["blend"]["weights"].update({"a.b": True}),
        "^provenance.blend.weights.a.b: expected `float`, got `bool`",
    ),
    "revision is a number": (
        lambda body: body["provenance"]["signals"]["preference"].update(revision=3),
        "^provenance.signals.preference.revision: expected `str`, got `int`",
    ),
    "model is a number": (lambda body: body.update(model=3), r"^model: expected `str . null`, got `int` \(value: 3\)$"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_answer_that_breaks_the_wire_is_refused(name: str, wire: "type[Wire]") -> None:
    breaks, says = BROKEN[name]
    body = answered(wire)
    breaks(body)
    with pytest.raises(InvalidAnswer, match=says):
        parse(body)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b"{} {}", b"[" * 100_000], ids=repr)
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidAnswer):
        answers.parse_score(body, [], [])
    with pytest.raises(InvalidAnswer):
        answers.parse_object(body)


@pytest.mark.parametrize("field", [b'"\xff"', b"NaN", b"-Infinity", b"01", b"'x'", b'"\\ud800"'], ids=repr)
def test_what_is_not_json_is_refused_in_fields_that_are_ignored_too(field: bytes, wire: "type[Wire]") -> None:
    body = json.dumps(answered(wire)).encode()
    answers.parse_score(body[:-1] + b', "usage": 1}', [None] * 3, range(3))
    with pytest.raises(InvalidAnswer, match=r"^the answer is not JSON: "):
        answers.parse_score(body[:-1] + b', "usage": ' + field + b"}", [None] * 3, range(3))


def test_a_wrong_field_is_named_even_if_broken_json_follows_it() -> None:
    with pytest.raises(InvalidAnswer, match=r"expected `array`, got `int` - at `\$\.data`"):
        answers.parse_score(b'{"object": "list", "data": 3, x', [], [])


def test_a_key_that_occurs_twice_counts_as_the_last(wire: "type[Wire]") -> None:
    body = json.dumps(answered(wire)).encode()
    assert answers.parse_score(body[:-1] + b', "model": "b"}', [None] * 3, range(3)).model == "b"
    with pytest.raises(InvalidAnswer, match="model"):
        answers.parse_score(b'{"model": 3, ' + body[1:], [None] * 3, range(3))


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


BROKEN_RANKINGS: dict[str, tuple[Break, str]] = {
    "too few": (lambda body: body["results"].pop(), "2 results and 1 errors do not match 4 completions"),
    "not sorted": (lambda body: body["results"].reverse(), "^results: they are not sorted by score"),
    "error lost": (lambda body: body["errors"].clear(), "3 results and 0 errors do not match 4"),
    "error twice": (lambda body: body["errors"].extend(body["errors"]), "3 results and 2 errors do not match 4"),
    "twice": (
        lambda body: body["results"].__setitem__(0, {**body["results"][0], "index": 3, "id": None}),
        "3 results and 1 errors do not match 4",
    ),
    "another's id": (lambda body: body["results"][0].update(index=3), r"^results\[0\]: the id of item 3"),
    "error ranked": (lambda body: body["results"].append(body["errors"].pop()), "4 results and 0 errors"),
    "rank as error": (lambda body: body["errors"].append(body["results"].pop()), "2 results and 2 errors"),
    "margin text": (lambda body: body["results"][0].update(margin="1"), r"^results\[0\]\.margin: .* got `str`"),
    "score missing": (lambda body: body["results"][0].pop("score"), r"^results\[0\]\.score: expected a value"),
    "no errors": (lambda body: body.pop("errors"), "^answer: object missing required field `errors`"),
    "another object": (lambda body: body.update(object="list"), "^object: expected `rank`"),
}


@pytest.mark.parametrize("name", BROKEN_RANKINGS)
def test_a_ranking_that_breaks_the_wire_is_refused(name: str, wire: "type[Wire]") -> None:
    breaks, says = BROKEN_RANKINGS[name]
    call, body = ranking(wire)
    breaks(body)
    with pytest.raises(InvalidAnswer, match=says):
        call.parse(json.dumps(body).encode())


def comparison(wire: "type[Wire]") -> tuple[p.Call[Comparison], dict[str, Any]]:
    call = p.build_compare_call([{"role": "user", "content": "p"}], "3", "1", {})
    return call, wire.compared(asked(call))


def test_a_comparison_is_read_whole(wire: "type[Wire]") -> None:
    call, body = comparison(wire)
    result = call.parse(json.dumps(body).encode())
    assert result.signals["preference"].margin == 2.0
    assert result.signals["preference"].prob_a == 0.75
    assert result.signals["absolute"].prob_a is None
    assert result.signals["absolute"].b.prob == 0.25
    assert result.blends == {"crs": 0.5}
    assert result.provenance.blend is None


BROKEN_COMPARISONS: dict[str, tuple[Break, str]] = {
    "margin": (lambda body: body["signals"]["preference"].pop("margin"), "^signals.preference: .* field `margin`"),
    "prob_a": (lambda body: body["signals"]["preference"].update(prob_a=True), "^signals.preference.prob_a: .*`bool`"),
    "side": (lambda body: body["signals"]["absolute"].pop("b"), "^signals.absolute: .* missing required field `b`"),
    "count": (
        lambda body: body["signals"]["absolute"]["b"].update(completion_tokens=-2),
        r"^signals.absolute.b.completion_tokens: expected `int` >= 0 \(value: -2\)$",
    ),
    "blend": (lambda body: body["blends"].update(crs=0.5), "^blends.crs: expected `object`, got `float`"),
    "blend's margin": (lambda body: body["blends"]["crs"].update(margin=None), "^blends.crs.margin: .* got `null`"),
    "no blends": (lambda body: body.pop("blends"), "^answer: object missing required field `blends`"),
    "another object": (lambda body: body.update(object="list"), "^object: expected `comparison`"),
}


@pytest.mark.parametrize("name", BROKEN_COMPARISONS)
def test_a_comparison_that_breaks_the_wire_is_refused(name: str, wire: "type[Wire]") -> None:
    breaks, says = BROKEN_COMPARISONS[name]
    call, body = comparison(wire)
    breaks(body)
    with pytest.raises(InvalidAnswer, match=says):
        call.parse(json.dumps(body).encode())


def rendering(wire: "type[Wire]") -> tuple[p.Call[RenderResult], dict[str, Any]]:
    (call,) = p.build_render_calls(ITEMS, {}, 64)
    return call, wire.rendered(asked(call))


def test_a_rendering_is_read_whole(wire: "type[Wire]") -> None:
    call, body = rendering(wire)
    body["data"][0]["score"] = "ignored"
    first, failed, _ = call.parse(json.dumps(body).encode()).data
    assert isinstance(first, RenderedItem)
    assert first.signals["preference"] == RenderedSignal(
        text="<user>p</user>1.5",
        ids=(5, 6, 7, 8),
        boundary=2,
        score_policy="last_token",
        score_start=3,
        score_end=4,
        truncated_tokens=1,
        dropped_tokens=0,
        control_tokens_as_text=0,
    )
    assert isinstance(failed, ScoreFailure)
    assert failed.error.code == "special_token"


RENDERED = r"^data\[0\]\.signals\.preference"


BROKEN_RENDERINGS: dict[str, tuple[Break, str]] = {
    "a token": (edit_signal(ids=[5, -6]), RENDERED + r"\.ids\[1\]: expected `int` >= 0 \(value: -6\)$"),
    "a token true": (edit_signal(ids=[True]), RENDERED + r"\.ids\[0\]: expected `int`, got `bool`"),
    "ids": (edit_signal(ids={}), RENDERED + r"\.ids: expected `array`, got `object`"),
    "text": (edit_signal(text=None), RENDERED + r"\.text: expected `str`, got `null`"),
    "position": (edit_signal(score_position=3), RENDERED + r"\.score_position: expected `object`, got `int`"),
    "start": (
        edit_signal(score_position={"policy": "last_token", "end": 4}),
        RENDERED + r"\.score_position: object missing required field `start`",
    ),
    "end": (
        edit_signal(score_position={"policy": "last_token", "start": 3, "end": "4"}),
        RENDERED + r"\.score_position\.end: expected `int`, got `str`",
    ),
    "no signals": (lambda body: body["data"][0].pop("signals"), r"^data\[0\]\.signals: expected a value"),
    "score and error": (lambda body: body["data"][1].update(score=1), r"^data\[1\]: .* both a score and an error"),
    "a row too few": (lambda body: body["data"].pop(), "2 rows do not match 3 items one to one"),
}


@pytest.mark.parametrize("name", BROKEN_RENDERINGS)
def test_a_rendering_that_breaks_the_wire_is_refused(name: str, wire: "type[Wire]") -> None:
    breaks, says = BROKEN_RENDERINGS[name]
    call, body = rendering(wire)
    breaks(body)
    with pytest.raises(InvalidAnswer, match=says):
        call.parse(json.dumps(body).encode())


def test_models_keep_all_details_of_the_server() -> None:
    row = {"id": "crs", "object": "model", "kind": "blend", "weights": {"a": 1}, "huge": 10**30, "none": None}
    (card,) = answers.parse_models(json.dumps({"object": "list", "data": [row]}).encode())
    assert (card.id, card.kind, card.details) == ("crs", "blend", row)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([{"id": "crs"}], r"^data\[0\]: object missing required field `kind`"),
        ([{"id": 3, "kind": "blend"}], r"^data\[0\]\.id: expected `str`, got `int` \(value: 3\)$"),
        ([3], r"^data\[0\]: expected `object`, got `int`"),
        ({}, "^data: expected `array`, got `object`"),
    ],
)
def test_a_list_of_models_that_breaks_the_wire_is_refused(data: object, says: str) -> None:
    with pytest.raises(InvalidAnswer, match=says):
        answers.parse_models(json.dumps({"object": "list", "data": data}).encode())


def test_an_object_of_no_fixed_form_is_read_as_it_is() -> None:
    body: dict[str, object] = {"version": "1", "limits": {"a": [1, 2.5, None, True]}, "huge": 10**30}
    assert answers.parse_object(json.dumps(body).encode()) == body
    with pytest.raises(InvalidAnswer, match=r"^a: number out of range"):
        answers.parse_object(b'{"a": 1e400}')
