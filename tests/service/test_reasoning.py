"""What happens to the reasoning of completions under each policy, and where its end is not certain."""

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
    """Whether a text without tags is reasoning that the policy's prompt opened cannot be told."""
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


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", " ", "`", "```\n", "é"]), max_size=8).map("".join)


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
