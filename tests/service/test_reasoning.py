"""What happens to the reasoning of completions under each policy, and where its end is not certain."""

import contextlib
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay_service.errors import ContentError, StartError
from assay_service.scoring.item import Item, Message
from assay_service.scoring.manifest import Manifest
from assay_service.scoring.reasoning import ReasoningRule
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from assay_service.signal_rules import decide_reasoning
from assay_service.signal_settings import SignalSettings
from tests import checkpoints
from tests.real_templates import trl_templates

THOUGHT = "<think>\nIt is hot.\n</think>\n\n"


def renderer(template: str, **rules: Any) -> Renderer:
    fast = checkpoints.decoder_tokenizer()
    return Renderer(fast, RenderRules(template, 100_000, "last_token", "template", "score", **rules), len(fast))


def rule(
    policy: Any = "strip", *, opened: bool = False, tags: tuple[str, str] = ("<think>", "</think>")
) -> ReasoningRule:
    return ReasoningRule(policy, *tags, opened)


def stripped(subject: ReasoningRule, completion: str, finish_reason: Any = "stop") -> str:
    return subject.apply(Item.of("Hot?", completion, finish_reason))[0].completion


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3", "deepseek_r1_distill", "qwen3_5_think", "gemma"])
@pytest.mark.parametrize(
    "completion", [f"{THOUGHT}Yes.", "  <think>It is hot.</think>Yes.", "It is hot.\n</think>\n\nYes."]
)
def test_stripped_reasoning_gives_the_ids_of_the_text_alone(name: str, completion: str) -> None:
    subject = renderer(trl_templates()[name], reasoning="strip")
    alone, rendered = subject.render(Item.of("Hot?", "Yes.")), subject.render(Item.of("Hot?", completion))
    assert rendered.sequence == alone.sequence
    assert (alone.reasoning, "It is hot." in rendered.reasoning) == ("", True)
    apart = Item((Message("user", "Hot?"), Message("assistant", "Yes.", (("reasoning_content", "It is hot."),))))
    assert subject.render(apart).sequence == alone.sequence
    refusing = renderer(trl_templates()[name], reasoning="error")
    assert refusing.render(Item.of("Hot?", "Yes.")).sequence == alone.sequence
    for item in (Item.of("Hot?", completion), apart):
        with pytest.raises(ContentError) as caught:
            refusing.render(item)
        assert caught.value.code == "reasoning"


def test_keep_renders_completions_as_they_are() -> None:
    item = Item.of("Hot?", f"{THOUGHT}Yes.")
    kept = renderer(trl_templates()["qwen2_5"]).render(item)
    assert f"{THOUGHT}Yes." in kept.text
    assert rule("keep").apply(item) == (item, "")


def test_a_prompt_that_opens_the_block_is_seen() -> None:
    """DeepSeek-R1's generation prompt ends with `<think>`, so that its completions begin within the block."""
    opening = renderer(trl_templates()["deepseek_r1_distill"], reasoning="strip")
    assert opening.render(Item.of("Hot?", "It is.</think>Yes.")).text == opening.render(Item.of("Hot?", "Yes.")).text
    closed = renderer(trl_templates()["qwen2_5"], reasoning="strip")
    with pytest.raises(ContentError, match="without the opening one"):
        closed.render(Item.of("Hot?", "It is.</think>Yes."))


@pytest.mark.parametrize(
    ("completion", "rest"),
    [
        ("Yes.", "Yes."),
        ("", ""),
        (THOUGHT, ""),
        ("<think></think>Yes.", "Yes."),
        ("<think>a</think>\r\n\n    indented", "    indented"),
        ("Write <think>plan</think> first.", "Write <think>plan</think> first."),
        ("```\n<think>\nx\n</think>\n```", "```\n<think>\nx\n</think>\n```"),
        ("<think>a</think>Write `<think>x</think>`.", "Write `<think>x</think>`."),
    ],
)
def test_only_a_leading_block_is_reasoning(completion: str, rest: str) -> None:
    assert stripped(rule(), completion) == rest


@pytest.mark.parametrize(
    "completion",
    [
        "Write `</think>` at the end.",
        "```\n</think>\n```",
        "It is.</think>Yes.",
        "<think>open",
        "<think>a</think><think>b</think>Yes.",
        "<think>w</think>No: it burns.</think>Ask a doctor.",
        "<think>I close it with `</think>`.</think>Yes.",
        "a\n</think>\nb\n</think>\nc",
    ],
)
@pytest.mark.parametrize("policy", ["strip", "error"])
def test_a_completion_whose_reasoning_has_no_certain_end_is_refused(policy: str, completion: str) -> None:
    with pytest.raises(ContentError) as caught:
        rule(policy).apply(Item.of("Hot?", completion))
    assert (caught.value.code, caught.value.param) == ("reasoning", "completion")


@pytest.mark.parametrize("completion", ["<think>The bus", "<thi", "The bus"])
def test_unfinished_reasoning_is_never_scored_as_text(completion: str) -> None:
    """A text without tags may be reasoning that the policy's prompt opened; nothing shows it."""
    for subject in (rule(), rule(opened=True)):
        with pytest.raises(ContentError, match="within its reasoning"):
            stripped(subject, completion, "length")
    assert stripped(rule(), f"{THOUGHT}The bus", "length") == "The bus"
    apart = Message("assistant", "The bus", (("reasoning_content", "Hm."),))
    assert rule().apply(Item((Message("user", "?"), apart), "length"))[0].completion == "The bus"


def test_earlier_turns_keep_their_reasoning() -> None:
    item = Item((Message("user", "a"), Message("assistant", THOUGHT), Message("user", "b"), Message("assistant", "c")))
    assert rule().apply(item) == (item, "")


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ],
)  # fmt: skip
def test_any_pair_of_tags_can_be_declared(start: str, end: str) -> None:
    subject = renderer(trl_templates()["qwen2_5"], reasoning="strip", reasoning_tags=(start, end))
    rendered = subject.render(Item.of("Hot?", f"{start}It is.{end}\n\nYes."))
    assert rendered.sequence == subject.render(Item.of("Hot?", "Yes.")).sequence
    assert rendered.reasoning == f"{start}It is.{end}"


# What models print, with the sources of the form: chat templates and the reasoning parsers of vLLM and SGLang.
PRINTED = {
    "qwen3": "<think>\nIt is hot.\n</think>\n\nYes.",
    "qwen3_empty": "<think>\n\n</think>\n\nYes.",
    "deepseek_r1": "<think>\nIt is hot.\n</think>\nYes.",
    "glm_4_5": "\n<think>It is hot.</think>\nYes.",
    "magistral": "[THINK]It is hot.[/THINK]Yes.",
    "seed_oss": "<seed:think>It is hot.</seed:think>Yes.",
    "longcat": "<longcat_think>\nIt is hot.\n</longcat_think>\nYes.",
    "kimi": "◁think▷It is hot.◁/think▷Yes.",
    "exaone_deep": "<thought>\nIt is hot.\n</thought>\n\nYes.",
    "command_a": "<|START_THINKING|>It is hot.<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>",
    "sky_t1": "<|begin_of_thought|>\n\nIt is hot.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nYes.",
    "gpt_oss": "<|channel|>analysis<|message|>It is hot.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
    "gpt_oss_decoded_without_special_tokens": "analysisIt is hot.assistantfinalYes.",
    "gemma_4": "<|channel>thought\nIt is hot.<channel|>Yes.",
    "granite_3": "Here is my thought process:\n\nIt is hot.\n\nHere is my response:\n\nYes.",
    "apriel": "Here are my reasoning steps:\nIt is hot.\n[BEGIN FINAL RESPONSE]\nYes.",
    "grpo_recipe": "<reasoning>\nIt is hot.\n</reasoning>\n<answer>\nYes.\n</answer>",
    "unsloth_recipe": "<start_working_out>It is hot.<end_working_out><SOLUTION>Yes.</SOLUTION>",
    "claude_prompt": "<thinking>It is hot.</thinking>\n\nYes.",
    "upper_case": "<THINK>It is hot.</THINK>Yes.",
    "mixed_tags": "<Thinking>\nIt is hot.\n</think>\nYes.",
    "wide_letters": "＜think＞It is hot.＜/think＞Yes.",
    "hidden_in_the_tag": "<th\u200bink>It is hot.</think>Yes.",
    "attribute": '<thinking mode="deep">It is hot.</thinking>Yes.',
    "opened_by_another_prompt": "It is hot.\n</thinking>\n\nYes.",
    "behind_text": "Let me see.\n<think>\nIt is hot.\n</think>\nYes.",
    "behind_text_on_one_line": "Let me see.\n<thinking>It is hot.</thinking>\nYes.",
    "second_block_of_another_kind": "<think>a</think>\n<thinking>It is hot.</thinking>Yes.",
}
FRONT = st.text(st.sampled_from(" \n\t\ufeff\u200b\u200c\u200d\u2060\u00ad\u00a0\u3164\u2800\x00\x1b"), max_size=3)


@pytest.mark.parametrize("name", PRINTED)
@given(front=FRONT)
def test_reasoning_as_models_print_it_is_never_scored(name: str, front: str) -> None:
    """`error` refuses all of it. `strip` removes the block of the declared tags to the letter, or refuses as well."""
    completion = front + PRINTED[name]
    with pytest.raises(ContentError) as caught:
        stripped(rule("error"), completion)
    assert (caught.value.code, caught.value.param) == ("reasoning", "completion")
    if name in {"qwen3", "qwen3_empty", "deepseek_r1", "glm_4_5"}:
        assert stripped(rule(), completion) == "Yes."
    else:
        with pytest.raises(ContentError, match="reasoning"):
            stripped(rule(), completion)


@pytest.mark.parametrize("begun", ["<", "<thin", "\ufeff<think", "<reason", "[TH", "<|channel|>ana", "analysisWe need"])
def test_a_completion_that_was_cut_off_within_any_such_tag_is_refused(begun: str) -> None:
    with pytest.raises(ContentError, match="reasoning"):
        stripped(rule("error"), begun, "length")


ORDINARY = [
    "I think so, after some reasoning.", "Thinking: is it hot?", "[Thinking of you]", "[1] thinking, [2] thought",
    "Analysis: it is hot.", "analysis of the sun", "Here is my reasoning: it is hot.", "1 < think > 0", "I <3 thinking",
    "<b>think</b>", "<thead>\n<tr>\n</thead>", "<answer>\nYes.\n</answer>", "*thinks* Yes.", "(thinking) Yes.",
    "Write `<think>` before `</think>`.", "```xml\n<thinking>\nx\n</thinking>\n```\nThat is it.", "~~~\n<think>\n",
    "The tag <think> opens it.", "It ends with </thinking>, too.", "``<think>x</think>`` is inline code.", "\ufeffYes.",
    "if x <think_time: pass", "List<Thought> thoughts = of();", "<thinking hard>", "[Thoughts]\nIt is hot.", "",
]  # fmt: skip


@pytest.mark.parametrize("text", ORDINARY)
@pytest.mark.parametrize("policy", ["strip", "error"])
def test_ordinary_text_is_neither_refused_nor_changed(policy: str, text: str) -> None:
    assert stripped(rule(policy), text) == text
    assert stripped(rule(policy), f"Yes.\n\n{text}\n") == f"Yes.\n\n{text}\n"
    assert stripped(rule(), f"<think>a</think>\n{text}") == text


@given(st.text(), st.sampled_from(["strip", "error"]))
def test_text_without_any_tag_is_neither_refused_nor_changed(text: str, policy: str) -> None:
    assert stripped(rule(policy), text) == text


def test_only_a_strict_policy_refuses_a_whole_block_within_a_line() -> None:
    """It may be reasoning, or text about reasoning."""
    for text in ("Write <think>plan</think> first.", "Write <thinking>plan</thinking> first."):
        assert stripped(rule(), text) == text
        with pytest.raises(ContentError, match="tag"):
            stripped(rule("error"), text)


@pytest.mark.parametrize(
    "piece", ["<", "<think>", "`", "``", "```\n", " ", "\n", "<|", "a_", "<a_", "[", "◁", "<a b", "="]
)
def test_a_long_completion_is_read_in_linear_time(piece: str) -> None:
    started_s = time.process_time()
    with contextlib.suppress(ContentError):
        stripped(rule("error"), "a" + piece * (200_000 // len(piece)) + "<")
    assert time.process_time() - started_s < 1


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<thinking>", "a", "\n", " ", "`", "```\n", "\u200b"]), max_size=8
).map("".join)


@given(PIECES, st.booleans(), st.sampled_from(["stop", "length"]))
def test_no_text_is_lost_and_no_tag_of_reasoning_is_left_over(text: str, opened: bool, finish_reason: Any) -> None:
    try:
        item, removed = rule(opened=opened).apply(Item.of("?", text, finish_reason))
    except ContentError:
        return
    assert "".join((removed + item.completion).split()) == "".join(text.split())
    assert text.endswith(item.completion)
    assert not item.completion.lstrip().startswith("<think>")
    first = item.completion.partition("</think>")
    assert not first[1] or "<think>" in first[0]


def test_the_manifest_decides_and_only_reasoning_that_training_removed_cannot_be_kept() -> None:
    def decide(claims: dict[str, Any], **declared: Any) -> tuple[str, tuple[str, str]]:
        return decide_reasoning(SignalSettings(base="x", **declared), Manifest(**claims))

    default = ("<think>", "</think>")
    assert decide({}) == decide({"reasoning": "keep"}) == ("keep", default)
    assert decide({"reasoning": "strip", "reasoning_tags": ("[A]", "[B]")}) == ("strip", ("[A]", "[B]"))
    assert decide({"reasoning": "keep"}, reasoning="strip") == ("strip", default)
    assert decide({"reasoning": "strip"}, reasoning="error") == ("error", default)
    with pytest.raises(StartError, match="trained without reasoning"):
        decide({"reasoning": "strip"}, reasoning="keep")
    with pytest.raises(StartError, match="remove it, or declare"):
        decide({}, reasoning_tags=("[A]", "[B]"))
    with pytest.raises(StartError, match="declared"):
        decide({"reasoning": "strip", "reasoning_tags": ("[A]", "[B]")}, reasoning_tags=("[C]", "[D]"))
    with pytest.raises(StartError, match="both are the same"):
        decide({}, reasoning="strip", reasoning_tags=("|", "|"))
