"""What a chat template does not print, what stands before an unfinished completion, and which template is taken."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay_service.errors import ContentError, StartError
from assay_service.scoring.item import Item, Message
from assay_service.scoring.render import Renderer
from assay_service.scoring.rendered import Rendered
from assay_service.scoring.rules import RenderRules
from assay_service.scoring.template_files import read_template
from tests import checkpoints
from tests.real_templates import trl_templates

THOUGHT = "<think>\nIt is hot.\n</think>\n\n"


def renderer(template: str, **rules: Any) -> Renderer:
    fast = checkpoints.decoder_tokenizer()
    settings: dict[str, Any] = {"eos": "template", "unfinished": "score", "dropped_content": "report"} | rules
    return Renderer(fast, RenderRules(template, 100_000, "last_token", **settings), len(fast))


@lru_cache
def real(name: str) -> Renderer:
    return renderer(trl_templates()[name])


def dropped(rendered: Rendered) -> list[tuple[int, str]]:
    return [(part.slot.index, part.text) for part in rendered.dropped]


def refusal(subject: Renderer, item: Item) -> tuple[str, str]:
    with pytest.raises(ContentError) as caught:
        subject.render(item)
    return caught.value.code, caught.value.message


def talk(*contents: str) -> Item:
    return Item(tuple(Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)))


def test_a_message_that_the_template_passes_over_is_an_error_that_names_it() -> None:
    """Qwen3's template knows no developer: the item would get the score of another conversation."""
    messages = (Message("user", "Hi."), Message("developer", "Be rude."), Message("assistant", "Hello."))
    assert refusal(real("qwen3"), Item(messages)) == (
        "template_error",
        "the template does not print messages[1] (role 'developer'); remove it, or declare a template that prints it",
    )
    code, message = refusal(real("qwen3"), Item((Message("my secret", "Hi."), Message("assistant", "Hello."))))
    assert (code, message.split(";")[0]) == ("template_error", "the template does not print messages[0]")


def test_templates_that_print_a_message_twice_or_only_the_last_ones_are_refused() -> None:
    twice = "{{ messages[0]['content'] }}\n" + checkpoints.CHATML
    with pytest.raises(StartError, match=r"prints messages\[0\] \(role 'user'\) 2 times"):
        renderer(twice)
    last = renderer(checkpoints.CHATML.replace("in messages", "in messages[-2:]"))
    assert last.render(Item.of("a", "b")).completion_tokens > 0
    assert refusal(last, talk("a", "b", "c", "d"))[1].startswith(
        "the template does not print messages[0] (role 'user')"
    )


def test_a_system_message_inside_the_first_user_turn_is_printed() -> None:
    llama2 = (
        "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}{% set ns.system = "
        "'<<SYS>>\n' ~ m.content ~ '\n<</SYS>>\n\n' %}{% elif m.role == 'user' %}[INST] {{ ns.system ~ m.content }}"
        " [/INST]{% set ns.system = '' %}{% else %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    messages = (Message("system", "Be kind."), Message("user", "Hi."), Message("assistant", "Hello."))
    assert (
        renderer(llama2).render(Item(messages)).text
        == "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi. [/INST] Hello.<|im_end|>"
    )


def test_thinking_that_the_template_drops_from_earlier_turns_is_reported_or_refused() -> None:
    item = talk("Hot?", f"{THOUGHT}Yes.", "Sure?", f"{THOUGHT}Sure.")
    rendered = real("qwen3").render(item)
    assert dropped(rendered) == [(1, "<think>\nIt is hot.\n</think>")]
    assert rendered.text.endswith(f"<|im_start|>assistant\n{THOUGHT}Sure.<|im_end|>\n")
    fast = checkpoints.decoder_tokenizer()
    assert rendered.dropped_tokens == len(fast.tokenize("<think>\nIt is hot.\n</think>"))
    assert refusal(renderer(trl_templates()["qwen3"], dropped_content="error"), item) == (
        "dropped_content",
        "the template does not print a part of messages[1] (role 'assistant') (27 characters); "
        "declare `dropped_content: report` to score the rest",
    )


@pytest.mark.parametrize(
    ("name", "completion", "lost"),
    [
        ("qwen3", "Yes.", None),
        ("qwen3", f"{THOUGHT}Yes.", None),
        ("qwen3", "<think>It is hot.</think>Yes.", None),
        ("qwen3", "It is hot.</think>Yes.", None),
        ("qwen3", "<think>\n\n</think>\n\nYes.", None),  # what Qwen3 itself replies to `/no_think`
        ("qwen3", "<think></think>No: it burns.</think>Ask a doctor.", "No: it burns.</think>"),
        ("glm4moe", "<think></think>Yes.", None),
        ("nemotron_3_nano", "<think></think>Yes.", None),
        ("qwen3", "<think>w</think>No: it burns.</think>Ask a doctor.", "No: it burns.</think>"),
        ("qwen3", "<think>w</think>Yes: drink it.</think>Ask a doctor.", "Yes: drink it.</think>"),
        ("deepseek_r1_distill", f"{THOUGHT}Yes.", "<think>\nIt is hot.\n</think>"),
        ("glm4moe", "<think>w</think>No: it burns.</think>Ask a doctor.", "No: it burns.</think>"),
        ("llama3", f"  {THOUGHT}Yes. \n", None),
        ("qwen3_8", f"{THOUGHT}Yes.", None),
    ],
)
def test_text_that_the_template_drops_from_the_completion_is_reported(
    name: str, completion: str, lost: str | None
) -> None:
    assert dropped(real(name).render(Item.of("Hot?", completion))) == ([] if lost is None else [(1, lost)])


def test_texts_that_imitate_the_marks_are_scored() -> None:
    item = talk("AssaySentinelq", "<think>AssaySentinelAq</think>AssaySentinelqq", "Sure?", "AssaySentinelAq")
    assert dropped(real("qwen3").render(item)) == [(1, "<think>AssaySentinelAq</think>")]
    assert real("qwen2_5").render(Item.of("AssaySentinelq", "AssaySentinelq a", "length")).completion_tokens > 0


def test_what_escaping_and_line_breaks_add_is_not_taken_for_a_loss() -> None:
    escaping = checkpoints.CHATML.replace("m['content']", "m['content'] | tojson")
    assert dropped(renderer(escaping).render(talk('say "a" & "b"\nnow', 'a "b"'))) == []
    cutting = checkpoints.CHATML.replace("m['content']", "m['content'][:20]")
    assert dropped(renderer(cutting).render(Item.of("Hi.", "one two three four five six"))) == [(1, "ive six")]


def test_many_rewritten_messages_are_refused_rather_than_rendered_each() -> None:
    upper = renderer(checkpoints.CHATML.replace("m['content']", "m['content'] | replace('b', 'c')"))
    code, message = refusal(upper, talk(*["abba"] * 200))
    assert (code, "too many" in message) == ("template_error", True)


@pytest.mark.parametrize("completion", ["<think>\nThe bus", "<think>", "<thi", "The bus", "Yes.", "The bus</think>Tak"])
def test_an_unfinished_completion_is_not_scored_behind_an_invented_thinking_block(completion: str) -> None:
    """Qwen3 opens replies without reasoning by an empty block, which would say that the thinking was over."""
    assert refusal(real("qwen3"), Item.of("Bus?", completion, "length"))[0] == "unfinished_unsupported"


@pytest.mark.parametrize(
    ("name", "completion"),
    [
        ("deepseek_r1_distill", "The bus"),  # the generation prompt ends with an open block, a finished reply has none
        ("deepseek_r1_distill", "Yes."),
        ("qwen3_5_think", "The bus"),
        ("qwen3_8", "The bus"),  # closes the block that its generation prompt opens
        ("glm4moe", "<think>The bus"),
    ],
)
def test_unfinished_completions_behind_uncertain_text_are_refused(name: str, completion: str) -> None:
    assert refusal(real(name), Item.of("Bus?", completion, "length"))[0] == "unfinished_unsupported"


@pytest.mark.parametrize(
    ("name", "completion", "end"),
    [
        ("qwen3", f"{THOUGHT}The bus", f"<|im_start|>assistant\n{THOUGHT}The bus"),
        ("qwen2_5", "The bus", "<|im_start|>assistant\nThe bus"),
        ("qwen2_5", "<think>\nThe bus", "<|im_start|>assistant\n<think>\nThe bus"),
        ("qwen3_instruct_2507", "The bus\n", "<|im_start|>assistant\nThe bus\n"),
        ("llama3", " The bus ", "<|start_header_id|>assistant<|end_header_id|>\n\nThe bus"),
        ("gemma", "The bus", "<start_of_turn>model\nThe bus"),
        ("phi3", "The bus", "<|assistant|>\nThe bus"),
        ("deepseekv3", f"{THOUGHT}The bus", None),
        ("gptoss", "The bus", "<|start|>assistant<|channel|>final<|message|>The bus"),
    ],
)
def test_unfinished_completions_behind_certain_text_are_scored(name: str, completion: str, end: str | None) -> None:
    item = Item.of("Bus?", completion, "length")
    if end is None:
        assert refusal(real(name), item)[0] == "unfinished_unsupported"
    else:
        assert real(name).render(item).text.endswith(end)


def test_a_template_without_thinking_scores_unfinished_completions() -> None:
    """Qwen3 with `enable_thinking=False`: the generation prompt itself holds the empty block."""
    plain = renderer("{%- set enable_thinking = false -%}" + trl_templates()["qwen3"])
    rendered = plain.render(Item.of("Bus?", "Take the", "length"))
    assert rendered.text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nTake the")
    assert rendered.sequence.score.end == len(rendered.sequence.ids)


@pytest.mark.parametrize(
    ("start", "end"), [("◁think▷", "◁/think▷"), ("[open]", "[shut]"), ("# Thinking\n", "# Answer\n")]
)
def test_an_empty_block_of_any_style_is_not_put_before_an_unfinished_reply_that_opens_one(start: str, end: str) -> None:
    empty = f"{{% if m['role'] == 'assistant' %}}{{{{ {start + end!r} }}}}{{% endif %}}{{{{ m['content'] }}}}"
    subject = renderer(checkpoints.CHATML.replace("{{ m['content'] }}", empty))
    assert refusal(subject, Item.of("Bus?", f"{start}The bus", "length"))[0] == "unfinished_unsupported"
    assert subject.render(Item.of("Bus?", "The bus", "length")).text.endswith(f"{start}{end}The bus")


def test_a_block_that_depends_on_another_message_is_not_put_before_an_unfinished_reply() -> None:
    reply = (
        "{{ '<think></think>' if m['role'] == 'assistant' and 'no_think' in messages[0]['content'] }}{{ m['content'] }}"
    )
    subject = renderer(checkpoints.CHATML.replace("{{ m['content'] }}", reply))
    assert refusal(subject, Item.of("Bus? /no_think", "<think>The", "length"))[0] == "unfinished_unsupported"
    assert subject.render(Item.of("Bus?", "<think>The", "length")).text.endswith("assistant\n<think>The")


PIECES = st.sampled_from(["<think>", "</think>", "a", "b", "tool", "\n", " ", "é", "<", "[INST]", "|", "user", "{{"])
TEXTS = st.lists(PIECES, max_size=6).map("".join) | st.text(st.characters(codec="utf-8"), max_size=6)


@pytest.mark.parametrize(
    "name", ["qwen3", "deepseek_r1_distill", "glm4moe", "qwen3_8", "llama3", "gemma", "phi3", "gptoss", "cohere2"]
)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_change_of_a_message_changes_the_ids_or_is_reported(name: str, data: st.DataObject) -> None:
    """White space does not count, nor tags of an empty block that a template prints whether or not they are there."""
    subject = real(name)
    contents = data.draw(st.lists(TEXTS, min_size=4, max_size=4))
    changed = list(contents)
    place = data.draw(st.integers(0, 3))
    changed[place] = data.draw(TEXTS)
    packed = [
        "".join(text.split()).removeprefix("<think>").removeprefix("</think>")
        for text in (contents[place], changed[place])
    ]
    ids = []
    for texts in (contents, changed):
        try:
            rendered = subject.render(talk(*texts))
        except ContentError:
            return
        if rendered.dropped:
            return
        ids.append(rendered.sequence.ids)
    assert (ids[0] == ids[1]) <= (packed[0] == packed[1])


def _checkpoint(folder: Path, chat_template: object, **files: str) -> Path:
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": chat_template}))
    for name, text in files.items():
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)
    return folder


def test_of_several_templates_the_default_or_the_declared_one_is_taken(tmp_path: Path) -> None:
    listed = [{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]
    base = _checkpoint(tmp_path / "a", listed, tool_use="T")
    assert read_template(None, base, base) == "D"
    assert [read_template(None, base, base, name) for name in ("default", "rag", "tool_use")] == ["D", "R", "T"]
    with pytest.raises(StartError, match="no chat template is called 'x'; declare one of: default, rag, tool_use"):
        read_template(None, base, base, "x")
    with pytest.raises(StartError, match="declare only one of them"):
        read_template(tmp_path / "own.jinja", base, base, "rag")
    (base / "chat_template.jinja").write_text("F")
    assert read_template(None, base, base) == "F"
    adapter = _checkpoint(tmp_path / "adapter", None, rag="AR")
    assert read_template(None, adapter, base, "rag") == "AR"


def test_several_templates_without_a_default_are_refused_by_name(tmp_path: Path) -> None:
    base = _checkpoint(tmp_path / "a", [{"name": "rag", "template": "R"}, {"name": "tool_use", "template": "T"}])
    with pytest.raises(StartError, match="no chat template is called 'default'; declare one of: rag, tool_use"):
        read_template(None, base, base)


@pytest.mark.parametrize("chat_template", [None, [], [{"name": "x"}], 3, ["x"]])
def test_no_template_or_a_malformed_one_refuses_to_start(tmp_path: Path, chat_template: object) -> None:
    base = _checkpoint(tmp_path / "a", chat_template)
    with pytest.raises(StartError, match="template"):
        read_template(None, base, base)
