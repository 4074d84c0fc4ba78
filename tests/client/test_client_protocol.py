"""Questions as bytes, and the answers to chunks of one call merged."""

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay_client import _answers as answers
from assay_client import _protocol as p
from assay_client.errors import FingerprintChanged, InvalidInput
from assay_client.types import Item, Score

if TYPE_CHECKING:
    from tests.client.conftest import Wire

ITEMS = [("p", "1.5"), ("p", "bad"), ("p", "-2")]


def asked(call: p.Call[Any]) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(call.encode_body() or b"")
    return body


def test_a_request_says_what_was_asked_and_nothing_else() -> None:
    (call,) = p.build_score_calls([Item(prompt="p", completion="é", id="a")], p.build_options(model="crs"), 64)
    assert call.path == "/v1/score"
    assert call.encode_body() == '{"model": "crs", "items": [{"prompt": "p", "completion": "é", "id": "a"}]}'.encode()


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
        parts.append(answers.Answered(call.parse(json.dumps(body).encode()), "r", "http://a"))
    random.shuffle(parts)
    data = answers.merge_scores(parts).data
    assert [row.index for row in data] == list(range(len(items)))
    assert [row.id for row in data] == [name for _, name in given_items]
    assert [repr(row.score) if isinstance(row, Score) else "bad" for row in data] == [text for text, _ in given_items]


def test_chunks_of_two_models_are_not_merged(wire: "type[Wire]") -> None:
    first, second = p.build_score_calls([("p", "1"), ("p", "2")], {}, 1)
    bodies = [json.dumps(wire.scored(asked(call), f"f{n}")).encode() for n, call in ((1, first), (2, second))]
    one, other = (call.parse(body) for call, body in zip((first, second), bodies, strict=True))
    with pytest.raises(FingerprintChanged, match=r"^the model changed during the call: f") as raised:
        answers.merge_scores([answers.Answered(one, "r1", "http://a"), answers.Answered(other, "r2", "http://a")])
    assert (raised.value.first, raised.value.second, raised.value.request_id) == ("f1", "f2", "r2")
    with pytest.raises(FingerprintChanged, match="http://a has fingerprint f1, http://b has f2") as raised:
        answers.merge_scores([answers.Answered(one, "r1", "http://a"), answers.Answered(other, "r2", "http://b")])
    assert raised.value.endpoints == ("http://a", "http://b")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "crs", "weights": {"preference": 1.0}}, "exclude each other"),
        ({"weights": {"preference": float("nan")}}, "weight of `preference`"),
        ({"truncation": "right"}, "`truncation`"),
        ({"top_n": 0}, "`top_n`"),
        ({"tokenizer_sha256": "A" * 64}, "sha256sum tokenizer.json"),
        ({"tokenizer_sha256": 7}, "`tokenizer_sha256` must be 64 hexadecimal digits"),
    ],
)
def test_contradictory_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        p.build_options(**options)


def test_a_malformed_item_is_named_by_its_index() -> None:
    with pytest.raises(InvalidInput, match=r"^items\[1\]: an item has exactly one of"):
        p.build_score_calls([("p", "c"), {"prompt": "p"}], {}, 64)


def test_token_ids_name_their_tokenizer_once_for_all_items() -> None:
    items = [("p", "c"), {"prompt_ids": [5, 6], "completion_ids": [7]}]
    with pytest.raises(InvalidInput, match=r"^items\[1\]: `prompt_ids` needs `tokenizer_sha256`"):
        p.build_score_calls(items, {}, 64)  # type: ignore[arg-type]
    (call,) = p.build_score_calls(items, p.build_options(tokenizer_sha256="ab" * 32), 64)  # type: ignore[arg-type]
    assert asked(call) == {
        "tokenizer_sha256": "ab" * 32,
        "items": [{"prompt": "p", "completion": "c"}, {"prompt_ids": [5, 6], "completion_ids": [7]}],
    }


def test_text_that_utf8_cannot_hold_is_refused_before_it_is_sent() -> None:
    (call,) = p.build_score_calls([("p", "\ud800")], {}, 64)
    with pytest.raises(InvalidInput, match="cannot be sent"):
        call.encode_body()
