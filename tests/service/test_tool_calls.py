"""Tool calls and lists of text parts: what templates print of them, and that nothing is passed over."""

import json
from datetime import datetime
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay_service.api.messages import build_items
from assay_service.api.schemas import ScoreItem
from assay_service.errors import ContentError
from assay_service.scoring.item import Item
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from tests import checkpoints
from tests.real_templates import trl_templates

USER = {"role": "user", "content": "Weather?"}
REPLY = {"role": "assistant", "content": "Warm."}
ARGUMENTS = {"city": 'Ber"lin\nMitte', "days": 3, "hot": True, "x": None, "f": 1.5, "l": [1, "a"], "o": {"k": "v"}}
# Templates that print tool calls, with what they say of arguments as an object and as text.
KNOWING = (
    "deepseekv3", "diffusion_gemma", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5", "glm4moe", "gptoss",
    "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl", "lfm2_v2", "llama3_1", "llama3_2", "muse_glimmer",
    "nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "qwen2_5", "qwen3",
    "qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8", "qwen3_instruct_2507", "qwen3_vl",
)  # fmt: skip
READING_PARTS = (
    "diffusion_gemma", "gemma3", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5", "glm4moe", "lfm2_2_5",
    "lfm2_2_5_v2", "lfm2_2_5_vl", "muse_glimmer", "qwen2_5_vl", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6",
    "qwen3_8", "qwen3_vl",
)  # fmt: skip
UNSERVABLE = ("idefics3", "llava_next", "smolvlm")  # their templates print no text that is not in a list


@lru_cache
def renderer(template: str, control_tokens: str = "error") -> Renderer:
    fast = checkpoints.decoder_tokenizer()
    rules: Any = {"dropped_content": "error", "control_tokens": control_tokens}
    return Renderer(fast, RenderRules(template, 1_000_000, "last_token", "template", "score", **rules), len(fast))


def real(name: str) -> Renderer:
    return renderer(trl_templates()[name])


def call(arguments: object, name: str = "get_weather", **fields: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **fields}


def trace(arguments: object, **fields: object) -> list[dict[str, Any]]:
    """A conversation in which a tool is called and answers."""
    calling = {"role": "assistant", "content": None, "tool_calls": [call(arguments, id="call_1")]}
    return [USER, calling, {"role": "tool", "tool_call_id": "call_1", "content": "hot", **fields}, REPLY]


def item(messages: list[dict[str, Any]], **fields: Any) -> Item:
    (built,) = build_items([ScoreItem.model_validate({"messages": messages, **fields})])
    if isinstance(built, ContentError):
        raise built
    return built


def refusal(subject: Renderer, messages: list[dict[str, Any]], **fields: Any) -> tuple[str, str]:
    with pytest.raises(ContentError) as caught:
        subject.render(item(messages, **fields))
    return caught.value.code, caught.value.message


def ids(subject: Renderer, messages: list[dict[str, Any]]) -> tuple[int, ...]:
    return subject.render(item(messages)).sequence.ids


def reference(name: str, messages: list[dict[str, Any]]) -> str:
    """The text of transformers' own method, which the service does not call with these messages."""
    fast = checkpoints.decoder_tokenizer()
    text = fast.apply_chat_template(
        messages, chat_template=trl_templates()[name], tokenize=False, strftime_now=datetime(2024, 7, 26).strftime
    )
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("name", KNOWING)
def test_calls_are_rendered_as_transformers_renders_them_whichever_form_the_arguments_have(name: str) -> None:
    text = json.dumps(ARGUMENTS)
    calling = {"role": "assistant", "content": "", "tool_calls": [call(ARGUMENTS, id="call_1")]}
    if name == "deepseekv3":  # its template joins arguments to a text, so that an object raises
        assert refusal(real(name), trace(ARGUMENTS))[0] == "template_error"
        calling = {"role": "assistant", "content": "", "tool_calls": [call(text, id="call_1")]}
    else:
        assert ids(real(name), trace(ARGUMENTS)) == ids(real(name), trace(text))
    wanted = reference(name, [USER, calling, {"role": "tool", "tool_call_id": "call_1", "content": "hot"}, REPLY])
    assert real(name).render(item(trace(text))).text == wanted
    completion: list[dict[str, Any]] = [USER, {**calling, "content": None}]
    assert real(name).render(item(completion)).text == reference(name, [USER, calling])
    assert refusal(real(name), completion, finish_reason="length")[0] == "unfinished_unsupported"


def test_every_other_template_refuses_calls_and_parts_by_name() -> None:
    content = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    parts: list[dict[str, Any]] = [{"role": "user", "content": content}, REPLY]
    knowing: list[str] = []
    reading: list[str] = []
    for name in sorted(set(trl_templates()) - set(UNSERVABLE)):
        for wanted, messages in ((knowing, trace(json.dumps(ARGUMENTS))), (reading, parts)):
            try:
                rendered = real(name).render(item(messages))
            except ContentError:
                code, message = refusal(real(name), messages)
                assert (code, "messages[" in message or "alternate" in message) == ("template_error", True)
                continue
            assert all(text in rendered.text for text in ("one", "two")[: 2 if messages is parts else 0])
            wanted.append(name)
    assert (tuple(knowing), tuple(reading)) == (KNOWING, READING_PARTS)


@pytest.mark.parametrize("name", READING_PARTS)
def test_parts_are_joined_as_the_template_joins_them(name: str) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}, REPLY]
    assert real(name).render(item(messages)).text == reference(name, messages)
    assert ids(real(name), messages) != ids(real(name), [{"role": "user", "content": [*parts, parts[0]]}, REPLY])


def test_a_template_that_prints_the_list_itself_is_not_taken_for_one_that_reads_it() -> None:
    """Each text would stand in the output once, but with Python's brackets and keys."""
    printing = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    parts = [{"type": "input_text", "text": "one"}, {"type": "text", "text": "two"}]
    code, message = refusal(renderer(printing), [{"role": "user", "content": parts}, REPLY])
    assert (code, message.split(",")[0]) == ("template_error", "the template does not read lists of text parts")
    calls = printing.replace("<|im_end|>", "{{ m.tool_calls[0].function if m.tool_calls }}<|im_end|>")
    assert "arguments that are objects" in refusal(renderer(calls), trace({"city": "Rome"}))[1]


@pytest.mark.parametrize(
    ("tool_calls", "param"),
    [
        ("x", "tool_calls"),
        ([3], "tool_calls[0]"),
        ([{"id": "1"}], "tool_calls[0]"),
        ([{"name": "f", "arguments": {}}], "tool_calls[0]"),
        ([call({}) | {"type": "custom"}], "tool_calls[0].type"),
        ([call({}) | {"extra_content": {"google": "x"}}], "tool_calls[0].extra_content"),
        ([call({}, name="")], "tool_calls[0].function.name"),
        ([call({}, name="f\ud800")], "tool_calls[0].function.name"),
        ([call({}, id="<|im_end|>")], "tool_calls[0].id"),
        ([call({}, index=1)], "tool_calls[0].index"),
        ([call(None)], "tool_calls[0].function.arguments"),
        ([call("")], "tool_calls[0].function.arguments"),
        ([call("[1]")], "tool_calls[0].function.arguments"),
        ([call('{"a": 1, "a": 2}')], "tool_calls[0].function.arguments"),
        ([call('{"a": NaN}')], "tool_calls[0].function.arguments"),
        ([call('{"a": 1e999}')], "tool_calls[0].function.arguments"),
        # Templates would print the nearest float.
        ([call('{"a": 9007199254740993.0}')], "tool_calls[0].function.arguments"),
        ([call('{"a": 0.1000000000000000055}')], "tool_calls[0].function.arguments"),
        ([call('{"a": 1e-400}')], "tool_calls[0].function.arguments"),
        ([call('{"a": "\\ud800"}')], "tool_calls[0].function.arguments"),
        ([call({"a": float("inf")})], "tool_calls[0].function.arguments"),
        ([call('{"a":' * 5000 + "1" + "}" * 5000)], "tool_calls[0].function.arguments"),
        ([call('{"a":' * 40 + "1" + "}" * 40)], "tool_calls[0].function.arguments"),
        ([call('{"a": ' + "9" * 5000 + "}")], "tool_calls[0].function.arguments"),
        ([call({"a": [0] * 2000})], "tool_calls"),
    ],
)
def test_malformed_calls_are_refused_by_name(tool_calls: object, param: str) -> None:
    with pytest.raises(ContentError) as caught:
        item([USER, {"role": "assistant", "content": None, "tool_calls": tool_calls}, REPLY])
    assert (caught.value.code, caught.value.param) == ("invalid_message", f"messages[1].{param}")


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_5_think", "gemma4", "muse_glimmer", "deepseekv3"])
@pytest.mark.parametrize("place", ["name", "key", "value", "nested"])
def test_control_tokens_anywhere_in_a_call_are_refused(name: str, place: str) -> None:
    bad = "a<|im_end|>"
    arguments = {"key": {bad: 1}, "value": {"a": bad}, "nested": {"a": [{"b": bad}]}}.get(place, {"a": 1})
    messages = trace(json.dumps(arguments))
    if place == "name":
        messages[1]["tool_calls"][0]["function"]["name"] = bad
    assert refusal(real(name), messages)[0] == "special_tokens"
    assert refusal(real(name), [messages[0], messages[1]])[0] == "special_tokens"


def test_control_tokens_as_text_are_counted_in_calls() -> None:
    subject = renderer(trl_templates()["qwen2_5"], "text")
    rendered = subject.render(item(trace({"a<|im_end|>": ["<|im_start|>", "b"]})))
    assert rendered.control_tokens_as_text == 2
    assert '{"a<|im_end|>": ["<|im_start|>", "b"]}' in rendered.text


def test_ids_that_follow_the_order_of_the_calls_need_not_be_printed_and_others_must() -> None:
    calls = [call({"a": 1}, id="x1"), call({"a": 2}, name="g", id="x2")]
    results = [{"role": "tool", "content": f"r{i}", "tool_call_id": f"x{i}"} for i in (1, 2)]

    def build(*tools: dict[str, Any]) -> list[dict[str, Any]]:
        return [USER, {"role": "assistant", "tool_calls": calls}, *tools, REPLY]

    bare = [{k: v for k, v in result.items() if k != "tool_call_id"} for result in results]
    assert ids(real("qwen2_5"), build(*results)) == ids(real("qwen2_5"), build(*bare))
    named = refusal(real("qwen2_5"), build(results[1], results[0]))[1]
    assert named.startswith("the template does not print messages[2].tool_call_id (role 'tool')")
    assert "messages[2].tool_call_id" in refusal(real("qwen2_5"), build(results[0] | {"tool_call_id": "other"}))[1]
    assert ids(real("qwen2_5"), build(results[0] | {"name": "get_weather"}, results[1])) == ids(
        real("qwen2_5"), build(*results)
    )
    assert "messages[2].name" in refusal(real("qwen2_5"), build(results[0] | {"name": "other"}, results[1]))[1]
    # This template reads the ids, and prints the name of the call to which they refer.
    assert "tool get_weather<|message|>" in real("muse_glimmer").render(item(build(*results))).text


def test_definitions_of_tools_are_refused_by_name_and_empty_ones_are_nothing() -> None:
    assert item([USER, REPLY], tools=[]) == item([USER, REPLY], tools=None) == item([USER, REPLY])
    with pytest.raises(ContentError) as caught:
        item([USER, REPLY], tools=[{"type": "function", "function": {"name": "f"}}])
    assert (caught.value.code, caught.value.param) == ("invalid_message", "tools")


def test_a_template_that_prints_only_a_part_of_a_call_is_refused() -> None:
    def template(expression: str) -> Renderer:
        return renderer(checkpoints.CHATML.replace("{{ m['content'] }}", "{{ m['content'] }}" + expression))

    loop = "{% for c in m.tool_calls or [] %}%s{% endfor %}"
    name, values = "{{ c.function.name }}", "{% for v in c.function.arguments.values() %}{{ v }}{% endfor %}"
    assert ".arguments" in refusal(template(loop.replace("%s", name)), trace({"a": 1}))[1]
    assert ".arguments.<name 0>" in refusal(template(loop.replace("%s", name + values)), trace({"a": 1}))[1]
    yes = "{% for k, v in c.function.arguments.items() %}{{ k }}{{ v if v else 0 }}{% endfor %}"
    assert refusal(template(loop.replace("%s", name + yes)), trace({"a": False}))[0] == "dropped_content"


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10),
    st.floats(-4, 4),
    st.sampled_from(["a", "True", "1", '"', "\\", "é"]),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abA"), inner, max_size=2)
)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "gptoss", "glm4moe", "gemma4", "deepseekv3"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_change_of_an_argument_changes_the_ids_or_is_reported(name: str, data: st.DataObject) -> None:
    """Texts and values that a template prints alike, such as "1" and 1, do not count for those that do so."""
    first, second = (data.draw(st.dictionaries(st.sampled_from("abA"), VALUES, max_size=3)) for _ in range(2))
    try:
        same = ids(real(name), trace(json.dumps(first))) == ids(real(name), trace(json.dumps(second)))
    except ContentError:
        return
    if not same or name in ("glm4moe", "gemma4"):
        assert not same or _spell(first) == _spell(second)
        return
    assert json.dumps(first) == json.dumps(second)


def _spell(value: object) -> str:
    """All letters and digits of a value: texts and values that look alike are the same."""
    order = sorted(value.items()) if isinstance(value, dict) else value
    return "".join(c for c in json.dumps(order).lower().replace("none", "null") if c.isalnum())
