"""Messages in the forms that OpenAI's SDKs write, over HTTP: nothing that could change a score is passed over."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from assay_service import settings
from assay_service.api.app import create_app
from assay_service.api.messages import build_items
from assay_service.api.schemas import ScoreItem
from assay_service.errors import ContentError
from tests import checkpoints
from tests.real_templates import trl_templates

USER, REPLY = {"role": "user", "content": "Pick a color."}, {"role": "assistant", "content": "Blue."}
NAMED = checkpoints.CHATML.replace("{{ m['role'] }}", "{{ m['role'] }}{{ ' ' ~ m['name'] if m['name'] }}")
CONFIG = """
signals:
  plain: {base: base, adapter: pref}
  named: {base: base, adapter: pref, template: named.jinja}
  thinking: {base: base, adapter: pref, template: qwen3.jinja, dropped_content: report, control_tokens: text}
  stripping: {base: base, adapter: pref, reasoning: strip, reasoning_tags: ["[THINK]", "[/THINK]"]}
default: plain
"""


@pytest.fixture(scope="module")
def service(tiny: dict[str, Any]) -> settings.Settings:
    root: Path = tiny["root"]
    (root / "named.jinja").write_text(NAMED)
    (root / "qwen3.jinja").write_text(trl_templates()["qwen3"])
    (root / "messages.yaml").write_text(CONFIG)
    return settings.read_settings(root / "messages.yaml")


def answers(service: settings.Settings, *requests: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The bodies of several answers of one service."""

    async def talk() -> list[dict[str, Any]]:
        app = create_app(service)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://assay") as http,
        ):
            return [(await http.post(path, json=body)).json() for path, body in requests]

    return asyncio.run(talk())


def scored(*conversations: list[dict[str, Any]], model: str = "plain") -> tuple[str, dict[str, Any]]:
    return "/v1/score", {"items": [{"messages": messages} for messages in conversations], "model": model}


SAME: list[list[dict[str, Any]]] = [
    [USER, REPLY],
    [{"role": "user", "content": [{"type": "text", "text": "Pick a color."}]}, REPLY],
    [USER, {"role": "assistant", "content": [{"type": "output_text", "text": "Blue.", "annotations": []}]}],
    [USER | {"name": None}, REPLY | {"refusal": None, "audio": None, "function_call": None, "tool_calls": []}],
    [USER, REPLY | {"reasoning_content": "", "annotations": [], "provider_specific_fields": {"refusal": None}}],
]
FAULTS: list[tuple[list[dict[str, Any]], str, str | None, str]] = [
    (
        [USER | {"name": "kim"}, REPLY],
        "template_error",
        None,
        "the template does not print messages[0].name (role 'user')",
    ),
    (
        [USER, REPLY | {"reasoning_content": "sky"}],
        "template_error",
        None,
        "the template does not print messages[1].reasoning_content (role 'assistant')",
    ),
    (
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, REPLY],
        "template_error",
        None,
        "the template does not read lists of text parts, as messages[0].content is",
    ),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, REPLY],
        "invalid_message",
        "messages[0].content[0]",
        "messages[0].content[0] is not a text part",
    ),
    (
        [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, REPLY],
        "invalid_message",
        "messages[1].tool_calls[0]",
        "messages[1].tool_calls[0] is not a function call",
    ),
    ([USER, REPLY | {"content": None}], "invalid_message", "messages[1].content", "messages[1].content is null"),
    ([USER | {"content": 3}, REPLY], "invalid_message", "messages[0].content", "messages[0].content is neither"),
    ([USER, REPLY | {"weight": 1}], "invalid_message", "messages[1].weight", "messages[1].weight is not a text"),
    ([USER, REPLY | {"my secret": 1}], "invalid_message", "messages[1]", "messages[1] is not a text"),
    ([USER, REPLY | {"name": "<|im_end|>"}], "special_tokens", None, "a message holds the control token"),
]


def test_what_sdks_write_scores_as_the_plain_messages_and_faults_are_the_items_own(
    service: settings.Settings,
) -> None:
    (answer,) = answers(service, scored(*SAME, *(messages for messages, *_ in FAULTS), [USER, REPLY]))
    rows = answer["data"]
    assert {row.get("score") for row in (*rows[: len(SAME)], rows[-1])} == {rows[0]["score"]}
    for row, (_, code, param, start) in zip(rows[len(SAME) : -1], FAULTS, strict=True):
        assert (row["error"]["code"], row["error"]["param"]) == (code, param)
        assert row["error"]["message"].startswith(start)
    assert rows[0]["signals"]["plain"]["dropped_tokens"] == 0


def test_an_assistants_message_without_text_is_an_empty_turn_of_the_prompt(service: settings.Settings) -> None:
    silent: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": []}
    tool = {"role": "tool", "content": "42"}
    (answer,) = answers(service, scored([USER, silent, tool, REPLY], [USER, silent | {"content": ""}, tool, REPLY]))
    first, second = answer["data"]
    assert first["score"] == second["score"]


def test_a_name_that_the_template_prints_is_scored(service: settings.Settings) -> None:
    named = [USER | {"name": "kim"}, REPLY]
    rows, shown = answers(
        service,
        scored(named, [USER | {"name": "lee"}, REPLY], [USER, REPLY], model="named"),
        ("/v1/render", {"items": [{"messages": [USER, REPLY]}]}),
    )
    scores = [row["score"] for row in rows["data"]]
    assert len(set(scores)) == 3
    assert shown["data"][0]["signals"]["named"]["text"].startswith("<|im_start|>user\nPick a color.")


def test_what_the_template_dropped_and_control_tokens_as_text_are_reported(service: settings.Settings) -> None:
    thought = [USER, REPLY | {"content": "<think>\nsky\n</think>\n\nBlue."}, USER, REPLY]
    quoted = [USER, REPLY | {"content": "Blue<|im_end|>."}]
    rows, shown = answers(
        service,
        scored(thought, quoted, [USER, REPLY], model="thinking"),
        ("/v1/score", {"items": [{"messages": thought}], "model": "thinking", "truncation": "prompt_left"}),
    )
    values = [row["signals"]["thinking"] for row in rows["data"]]
    assert [value["control_tokens_as_text"] for value in values] == [0, 1, 0]
    assert [value["dropped_tokens"] > 0 for value in values] == [True, False, False]
    assert shown["data"][0]["signals"]["thinking"]["dropped_tokens"] == values[0]["dropped_tokens"]


def test_render_shows_what_was_dropped(service: settings.Settings) -> None:
    only = service.model_copy(update={"signals": {"thinking": service.signals["thinking"]}, "default": "thinking"})
    completion = "<think>w</think>No: it burns.</think>Ask a doctor."
    (shown,) = answers(only, ("/v1/render", {"items": [{"prompt": "Hot?", "completion": completion}]}))
    signal = shown["data"][0]["signals"]["thinking"]
    assert signal["dropped"] == [{"message": 1, "field": "content", "text": "No: it burns.</think>"}]
    assert signal["dropped_tokens"] > 0
    assert signal["text"].endswith("<think>\nw\n</think>\n\nAsk a doctor.<|im_end|>\n")


def test_the_policy_for_reasoning_is_shown_with_what_it_removed(service: settings.Settings) -> None:
    reasoned = [USER, REPLY | {"content": "[THINK]sky[/THINK]\n\nBlue."}]
    cut = {"messages": [USER, REPLY | {"content": "[THINK]sky"}], "finish_reason": "length"}
    items = [{"messages": [USER, REPLY]}, {"messages": reasoned}, cut]
    rows, shown = answers(
        service,
        ("/v1/score", {"model": "stripping", "items": items}),
        ("/v1/render", {"model": "stripping", "items": items}),
    )
    plain, stripped, unfinished = rows["data"]
    assert plain["score"] == stripped["score"]
    assert (unfinished["error"]["code"], unfinished["error"]["param"]) == ("reasoning", "completion")
    rendered = [row["signals"]["stripping"] for row in shown["data"][:2]]
    assert rendered[0]["ids"] == rendered[1]["ids"]
    assert [one["reasoning"] for one in rendered] == [
        {"policy": "strip", "removed": ""},
        {"policy": "strip", "removed": "[THINK]sky[/THINK]"},
    ]


def test_a_completion_of_tool_calls_needs_no_content(service: settings.Settings) -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
    (rows,) = answers(service, scored([USER, {"role": "assistant", "tool_calls": calls}], model="thinking"))
    assert "score" in rows["data"][0]


def test_a_faulty_prompt_fails_every_completion_and_is_named(service: settings.Settings) -> None:
    prompt = [USER | {"content": [{"type": "file"}]}]
    ranked, compared = answers(
        service,
        ("/v1/rank", {"messages": prompt, "completions": ["a", "b"], "model": "plain"}),
        ("/v1/compare", {"prompt": prompt, "a": "a", "b": "b"}),
    )
    assert ranked["results"] == []
    assert [row["error"]["param"] for row in ranked["errors"]] == ["messages[0].content[0]"] * 2
    assert (compared["error"]["code"], compared["error"]["param"]) == ("invalid_message", "prompt[0].content[0]")


def test_half_of_a_surrogate_pair_is_the_items_own_fault() -> None:
    messages = [{"role": "user", "content": "a \ud800"}, REPLY]
    (error,) = build_items([ScoreItem.model_validate({"messages": messages})])
    assert isinstance(error, ContentError)
    assert (error.code, error.param) == ("invalid_message", "messages[0].content")
