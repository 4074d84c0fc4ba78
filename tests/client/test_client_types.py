"""Items check themselves; results never make up a number."""

from typing import Any

import pytest

from assay_client.errors import InvalidInput, ItemsFailed
from assay_client.messages import Message
from assay_client.provenance import Provenance
from assay_client.types import Item, ItemError, Score, ScoreFailure, ScoreResult


def test_every_form_of_an_item_has_the_same_wire_form() -> None:
    expected = {"prompt": "p", "completion": "c"}
    assert Item.of(("p", "c")).to_wire() == expected
    assert Item.of({"prompt": "p", "completion": "c"}).to_wire() == expected
    assert Item.of(Item(prompt="p", completion="c")).to_wire() == expected


def test_a_message_with_tool_calls_needs_no_content_and_keeps_every_field() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": "p"}, {"role": "assistant", "tool_calls": calls}]
    assert Item(messages=messages).to_wire()["messages"] == [messages[0], {"content": None, **messages[1]}]


def test_messages_and_optional_fields_reach_the_wire() -> None:
    item = Item(messages=[Message("user", "p"), {"role": "assistant", "content": "c"}], finish_reason="length", id="a")
    assert item.to_wire() == {
        "messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}],
        "finish_reason": "length",
        "id": "a",
    }


def test_empty_texts_are_the_servers_to_judge() -> None:
    assert Item(prompt="", completion="").to_wire() == {"prompt": "", "completion": ""}


def test_a_list_changed_later_does_not_change_the_item() -> None:
    prompt = [{"role": "user", "content": "p"}]
    item = Item(prompt=prompt, completion="c")
    prompt.append({"role": "user", "content": "q"})
    assert item.to_wire()["prompt"] == [{"role": "user", "content": "p"}]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({}, "exactly one of"),
        ({"prompt": "p"}, "exactly one of"),
        ({"completion": "c"}, "exactly one of"),
        ({"prompt": "p", "completion": "c", "messages": []}, "exactly one of"),
        ({"completion": "c", "messages": []}, "exactly one of"),
        ({"prompt": "p", "completion": 3}, "`completion` must be text"),
        ({"prompt": 3, "completion": "c"}, "`prompt` must be text or a list of messages"),
        ({"messages": "hello"}, "`messages` must be a list of messages"),
        ({"messages": [{"role": "user"}]}, "an object with `role` and `content`"),
        ({"messages": [{"role": 3, "content": "p"}]}, "needs a `role`"),
        (("p", [{"role": "assistant", "content": None}]), "exactly one assistant message"),
        (
            ("p", [{"role": "assistant", "content": "c", "reasoning_content": "r"}]),
            "`reasoning_content` of its message",
        ),
        ({"prompt": "p", "completion": "c", "finish_reason": "eos"}, '"stop" or "length"'),
        ({"prompt": "p", "completion": "c", "finish_reason": ["stop"]}, '"stop" or "length"'),
        ({"prompt": "p", "completion": "c", "id": 7}, "`id` must be text"),
        ({"prompt": "p", "completion": "c", "label": 1}, "unknown key `label`"),
        (("p", "c", "x"), '"stop" or "length"'),
        (("p", "c", "stop", "id"), "got 4 values"),
        (("p", [{"role": "user", "content": "c"}]), "exactly one assistant message"),
        (("p", [{"role": "assistant", "content": "c"}] * 2), "exactly one assistant message"),
        (("p", []), "exactly one assistant message"),
        (("p", b"c"), "`completion` must be text"),
        ("p", "not str"),
        ({"prompt_ids": [5]}, "exactly one of"),
        ({"completion_ids": [5]}, "exactly one of"),
        ({"prompt_ids": [5], "completion": "c"}, "exactly one of"),
        ({"prompt_ids": [5], "completion_ids": [6], "prompt": "p", "completion": "c"}, "exactly one of"),
        ({"prompt_ids": [5], "completion_ids": [6], "finish_reason": "stop"}, "`finish_reason` is read from the last"),
        (
            {"prompt_ids": [5, -1], "completion_ids": [6]},
            r"`prompt_ids\[1\]` must be a whole number of at least 0, not -1",
        ),
        ({"prompt_ids": [5], "completion_ids": [True]}, r"`completion_ids\[0\]` must be .*, not True"),
        ({"prompt_ids": [5], "completion_ids": [6.0]}, r"`completion_ids\[0\]` must be .*, not 6\.0"),
        ({"prompt_ids": ["5"], "completion_ids": [6]}, r"`prompt_ids\[0\]` must be .*, not '5'"),
        ({"prompt_ids": [[5]], "completion_ids": [6]}, r"`prompt_ids\[0\]` must be"),
        ({"prompt_ids": b"5", "completion_ids": [6]}, "`prompt_ids` must be a list of token ids, not bytes"),
        ({"prompt_ids": 5, "completion_ids": [6]}, "`prompt_ids` must be a list of token ids, not int"),
    ],
)
def test_a_malformed_item_says_what_is_wrong(value: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        Item.of(value)


def test_token_ids_reach_the_wire_and_cannot_be_changed_later() -> None:
    ids = [5, 2**40]
    item = Item(prompt_ids=ids, completion_ids=(), id="a")
    ids.append(7)
    assert item.to_wire() == {"prompt_ids": (5, 2**40), "completion_ids": (), "id": "a"}
    assert Item.of({"prompt_ids": [5, 2**40], "completion_ids": [], "id": "a"}) == item


def test_a_tuple_of_three_says_why_generation_ended() -> None:
    assert Item.of(("p", "c", "length")) == Item(prompt="p", completion="c", finish_reason="length")
    assert Item.of(("p", "c", None)) == Item.of(("p", "c")) == Item(prompt="p", completion="c")


def test_messages_of_an_sdk_reach_the_wire_as_they_are() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "p"}], "name": "kim"}
    reply = {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None}
    assert Item(messages=[parts, reply]).to_wire() == {"messages": [parts, reply]}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": "c", "refusal": None},
        Message("assistant", "c"),
    ],
)
def test_a_completion_of_one_assistant_message_is_its_text(message: Any) -> None:
    assert Item(prompt="p", completion=[message]).to_wire() == {"prompt": "p", "completion": "c"}
    assert Item.of(("p", (message,), "stop")) == Item(prompt="p", completion="c", finish_reason="stop")


def result(*data: Score | ScoreFailure) -> ScoreResult:
    return ScoreResult(data, "crs", Provenance(None, {}, "f1"))


def test_scores_are_a_list_in_order() -> None:
    assert result(Score(0, None, 2.0, {}), Score(1, None, -1.0, {})).scores() == [2.0, -1.0]
    assert result().scores() == []


@pytest.mark.parametrize("number", [0.0, float("nan"), False])
def test_no_number_can_stand_for_a_missing_score(number: Any) -> None:
    with pytest.raises(InvalidInput, match="can only be None"):
        result(Score(0, None, 2.0, {})).scores(missing=number)


def test_scores_raise_where_an_item_has_none() -> None:
    failure = ScoreFailure(1, "b", ItemError("special_token", "holds <s>", "completion", False))
    scored = result(Score(0, None, 2.0, {}), failure)
    with pytest.raises(ItemsFailed) as raised:
        scored.scores()
    assert [(one.index, one.id, one.code) for one in raised.value.failures] == [(1, "b", "special_token")]
    assert raised.value.total == 2
    assert scored.scores(missing=None) == [2.0, None]
    assert scored.failures == (failure,)
