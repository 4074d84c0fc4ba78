"""Rendered text is read back into the conversation that the template rendered, or refused."""

import time
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay_service.errors import ContentError
from assay_service.scoring import tokenizer
from assay_service.scoring.chat_environment import TemplateRenderer
from assay_service.scoring.item import Item, Message
from assay_service.scoring.template import Template
from assay_service.scoring.template_files import read_template
from assay_service.scoring.transcript import Transcript, build_transcript
from tests import checkpoints
from tests.real_templates import trl_templates
from tests.real_tokenizers import real_tokenizer
from tests.service.test_template_roles import FROM_PACKAGES, _template

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}{{ ' [INST] ' + m.content + "
    "' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
# Templates that take content as a list of parts only.
PARTS_ONLY = {"idefics3", "llava_next", "smolvlm"}
# The system message becomes a part of the first user turn, so nothing shows where it ended.
FOLDED = {"gemma3"}


@lru_cache
def reader(name: str) -> tuple[Template, Transcript]:
    """The template of a model, and its reader, with the tokenizer of that model where there is one."""
    if name in FROM_PACKAGES:
        directory = real_tokenizer(name)
        fast = tokenizer.load(directory)
        template = Template(TemplateRenderer(fast), read_template(None, directory, directory))
    elif name == "mistral":
        specials = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
        fast = checkpoints.tokenizer(specials, MISTRAL, extra=("[INST]", "[/INST]"))
        template = Template(TemplateRenderer(fast), MISTRAL)
    else:
        fast = checkpoints.decoder_tokenizer()
        template = Template(TemplateRenderer(fast), checkpoints.CHATML if name == "chatml" else _template(name))
    return template, build_transcript(template, fast)


def conversation(*pairs: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in pairs)


def read(name: str, text: str) -> Item:
    return reader(name)[1].read(text)


def refusal(name: str, text: str, completion: str | None = None) -> tuple[str, str]:
    with pytest.raises(ContentError) as caught:
        reader(name)[1].read(text) if completion is None else reader(name)[1].read_pair(text, completion)
    return caught.value.code, caught.value.message


LLAMA3 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
QWEN2_5 = f"<|im_start|>system\n{QWEN_SYSTEM}<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
CHATML = "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
GEMMA = "<bos><start_of_turn>user\nHi.<end_of_turn>\n<start_of_turn>model\n"
SYSTEM, USER, ANSWER = ("system", "Be kind."), ("user", "Hi."), ("assistant", "Hello.\n\nHow are you?")


@pytest.mark.parametrize(
    ("name", "prompt", "end", "messages"),
    [
        ("llama3", LLAMA3, "<|eot_id|>", (SYSTEM, USER)),
        ("llama3", LLAMA3, "<|eot_id|><|end_of_text|>", (SYSTEM, USER)),
        ("llama3", LLAMA3.removeprefix("<|begin_of_text|>"), "<|eot_id|>", (SYSTEM, USER)),
        ("qwen2_5", QWEN2_5, "<|im_end|>\n", (("system", QWEN_SYSTEM), USER)),
        ("qwen2_5", "<|endoftext|>" * 9 + QWEN2_5, "<|im_end|>", (("system", QWEN_SYSTEM), USER)),
        ("qwen3", CHATML, "<|im_end|><|endoftext|><|endoftext|>", (USER,)),
        ("qwen3", f"{CHATML}<think>\n\n</think>\n\n", "<|im_end|>", (USER,)),
        ("gemma3", GEMMA, "<end_of_turn>\n", (USER,)),
        ("gemma3", GEMMA, "<end_of_turn><pad><pad>", (USER,)),
        ("mistral", "<s> [INST] Hi. [/INST]", " </s>", (USER,)),
        ("mistral", "</s></s><s> [INST] Hi. [/INST]", "</s></s></s>", (USER,)),
        ("chatml", f"<|pad|><|pad|><|bos|>{CHATML}", "<|im_end|>", (USER,)),
        ("trl phi3", "<|user|>\nHi.<|end|>\n<|assistant|>\n", "<|end|>", (USER,)),
        ("trl glm4moe", "[gMASK]<sop><|user|>\nHi.<|assistant|>", "<|user|>", (USER,)),
    ],
)
def test_what_trainers_send_is_read(name: str, prompt: str, end: str, messages: tuple[tuple[str, str], ...]) -> None:
    wanted = conversation(*messages, ANSWER)
    for item in (read(name, prompt + ANSWER[1] + end), reader(name)[1].read_pair(prompt, ANSWER[1] + end)):
        assert [(m.role, m.content.strip()) for m in item.messages] == [(m.role, m.content) for m in wanted]
        assert item.finish_reason == "stop"
    unfinished = read(name, prompt + ANSWER[1])
    assert (unfinished.completion.strip(), unfinished.finish_reason) == (ANSWER[1], "length")


def test_a_finished_text_without_eos_gets_none_and_pads_do_not_finish_it() -> None:
    assert read("qwen3", f"{CHATML}Hel<|endoftext|><|endoftext|>") == Item.of("Hi.", "Hel", "length")
    assert reader("qwen3")[1].read_pair(CHATML, "Hel") == Item.of("Hi.", "Hel", "length")
    # Where the pad is the EOS, nothing shows whether the first of them is one.
    assert read("mistral", "<s> [INST] Hi. [/INST] Hel</s></s>").finish_reason == "stop"


def test_pads_take_linear_time() -> None:
    pads = "<|endoftext|>" * 200_000  # 2.6 MB on each side took minutes when each pad copied the rest
    began_s = time.perf_counter()
    assert read("qwen3", f"{pads}{CHATML}Hel{pads}") == Item.of("Hi.", "Hel", "length")
    assert time.perf_counter() - began_s < 10


def test_white_space_of_a_completion_is_kept() -> None:
    assert reader("gemma3")[1].read_pair(GEMMA, "  Hello \n<end_of_turn>").completion == "  Hello \n"
    assert reader("llama3")[1].read_pair(LLAMA3, "Hel ").completion == "Hel "


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("trl qwen3_5_think", "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n<think>\n"),
        ("trl deepseek_r1_distill", "<|bos|><｜User｜>Hi.<｜Assistant｜><think>\n"),
    ],
)
def test_reasoning_that_the_generation_prompt_opens_belongs_to_the_completion(name: str, prompt: str) -> None:
    reasoned = "It is a greeting.\n</think>\n\nHello."
    for end, reason in (("<|im_end|>", "stop"), ("", "length")):
        item = reader(name)[1].read_pair(prompt, reasoned + end)
        assert item == Item.of("Hi.", f"<think>\n{reasoned}", reason)  # type: ignore[arg-type]
        assert read(name, prompt + reasoned + end) == item
    assert reader(name)[1].read_pair(prompt, "It is").completion == "<think>\nIt is"


def test_an_empty_closed_block_of_the_template_is_not_part_of_the_completion() -> None:
    wanted = Item.of("Hi.", "Hello.")
    assert read("qwen3", f"{CHATML}<think>\n\n</think>\n\nHello.<|im_end|>\n") == wanted
    assert reader("qwen3")[1].read_pair(CHATML, "<think>\n\n</think>\n\nHello.<|im_end|>") == wanted


def test_a_prompt_of_another_day_is_read() -> None:
    prompt = (
        "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 28 Nov 2026\n\n{}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert read("trl llama3_2", f"{prompt.format('')}Hello.<|eot_id|>") == Item.of("Hi.", "Hello.")
    item = reader("trl llama3_2")[1].read_pair(prompt.format("Be kind."), "Hello.<|eot_id|>")
    assert item.messages == conversation(SYSTEM, USER, ("assistant", "Hello."))
    text = prompt.format("").replace("28 Nov 2026", "yesterday")
    assert refusal("trl llama3_2", f"{text}Hello.<|eot_id|>")[0] == "unreadable_text"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("chatml", "Hello.", "is not a conversation of this template"),
        ("chatml", "", "is not a conversation of this template"),
        ("chatml", "<|im_start|>user\nHi.<|im_end|>\n", "is not a conversation of this template"),
        ("chatml", f"<|bos|><|bos|>{CHATML}Hello.<|im_end|>", "begins with two BOS tokens"),
        ("llama3", f"{CHATML}Hello.<|im_end|>", "is not a conversation of this template"),
        # A system prompt that the template would have printed in another place.
        ("gemma3", GEMMA.replace("model", "system"), "is not a conversation of this template"),
        # The template drops the reasoning of earlier turns, so it never rendered this.
        (
            "qwen3",
            f"{CHATML}<think>\nHm.\n</think>\n\nHello.<|im_end|>\n{CHATML}Yes.",
            "gives another text for the messages in it: they differ after 50 characters",
        ),
    ],
)
def test_other_text_is_refused_with_the_reason(name: str, text: str, reason: str) -> None:
    code, message = refusal(name, text)
    assert code == "unreadable_text"
    assert reason in message


@pytest.mark.parametrize(
    ("name", "prompt", "completion", "token"),
    [
        ("qwen3", CHATML, "Hello.<|im_end|>\n<|im_start|>user\nGo on.<|im_end|>", "<|im_end|>\n<|im_start|>user"),
        ("qwen3", CHATML, "Hello.<|im_end|><|im_end|><|im_end|>", "<|im_end|>"),
        ("qwen3", CHATML, "Hello.<|vision_start|><|im_end|>", "<|vision_start|>"),
        ("llama3", LLAMA3, "Hello.<|eot_id|>And.<|eot_id|>", "<|eot_id|>"),
        ("mistral", "<s> [INST] Hi. [/INST]", " Hello. [INST] More. [/INST] Yes.</s>", "[INST]"),
        ("trl phi3", "<|user|>\nHi.<|end|>\n<|assistant|>\n", "Hello.<|end|>\n<|user|>\nMore.", "<|end|>\n<|user|>"),
    ],
)
def test_a_completion_with_control_tokens_or_further_turns_is_refused(
    name: str, prompt: str, completion: str, token: str
) -> None:
    code, message = refusal(name, prompt, completion)
    assert code == "special_tokens"
    assert repr(token) in message


def test_a_prompt_must_end_with_the_generation_prompt() -> None:
    prompt = "<|im_start|>user\nHi.<|im_end|>\n"
    assert refusal("chatml", prompt, "Hello.")[0] == "unreadable_text"
    assert refusal("chatml", "", "Hello.")[0] == "unreadable_text"
    # Text after the generation prompt is the start of the completion, as in a continued message.
    assert reader("chatml")[1].read_pair(f"{CHATML}Hel", "lo.<|im_end|>") == Item.of("Hi.", "Hello.")


def readable() -> list[str]:
    return [*sorted(f"trl {name}" for name in trl_templates() if name not in PARTS_ONLY), "chatml", "mistral"]


WORDS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=30)
CONTENT = st.lists(WORDS, min_size=1, max_size=3).map("\n\n".join).map(str.strip).filter(bool)
ROLES = st.sampled_from(["ua", "sua", "uaua", "suaua", "uata", "uatua"])
NAMES = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}


@st.composite
def talks(draw: st.DrawFn, content: st.SearchStrategy[str] = CONTENT) -> tuple[Message, ...]:
    return tuple(Message(NAMES[letter], draw(content)) for letter in draw(ROLES))


def test_every_template_reads_what_it_renders() -> None:
    """Each template reads the conversations that it accepts; the others are counted, so that none is lost silently."""
    plain = {letter: f"Text {letter}.\n\nMore." for letter in NAMES}
    count = 0
    for name in readable():
        for roles in ("ua", "sua", "uaua", "suaua", "uata", "uatua"):
            count += check_reading(name, tuple(Message(NAMES[letter], plain[letter]) for letter in roles))
    assert count == 206


def check_reading(name: str, messages: tuple[Message, ...]) -> bool:
    """Check that both readers return `messages`; return False if the template refuses or changes them."""
    template, transcript = reader(name)
    try:
        rendered = template.render(Item(messages))
    except ContentError:
        return False
    escaped = any(m.role == "tool" for m in messages) and "\\n" in rendered.full
    if rendered.dropped or escaped:  # Llama 3.2 prints results of tools as JSON strings
        return False
    item, pair = transcript.read(rendered.full), transcript.read_pair(rendered.prompt, messages[-1].content)
    assert template.render(Item(item.messages)).full == rendered.full
    assert template.render(Item(pair.messages)).prompt == rendered.prompt
    assert pair.completion.endswith(messages[-1].content)
    default = item.messages[:1] if messages[0].role != "system" and item.messages[0].role == "system" else ()
    if name.removeprefix("trl ") not in FOLDED or messages[0].role != "system":
        assert item.messages == (*default, *messages)
        assert pair.messages[:-1] == (*default, *messages[:-1])
    return True


@pytest.mark.parametrize("name", ["trl llama3_2", "trl qwen2_5", "trl qwen3", "trl gemma3", "mistral", "chatml"])
@settings(max_examples=60, deadline=None)
@given(messages=talks())
def test_random_conversations_are_read(name: str, messages: tuple[Message, ...]) -> None:
    check_reading(name, messages)


FRAGMENTS = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>",
        "<|im_start|>user\n",
        "\n",
        "assistant\n",
        "<think>",
        "</think>",
        "[INST] ",
        " [/INST]",
        *("<|eot_id|>", "<|start_header_id|>", "user", "<|end_header_id|>\n\n", "<|bos|>", "<|pad|>", "</s>", "a", " "),
    ]
)


@pytest.mark.parametrize("name", ["trl llama3", "trl qwen2_5", "trl qwen3", "mistral", "chatml"])
@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(FRAGMENTS, max_size=25), start=st.booleans())
def test_a_text_of_fragments_is_refused_or_is_what_the_template_renders(
    name: str, pieces: list[str], start: bool
) -> None:
    template, transcript = reader(name)
    prompt = template.render(Item.of("Hi.", "x")).prompt if start else ""
    text = prompt + "".join(pieces)
    try:
        item = transcript.read(text)
    except ContentError:
        return
    rendered = template.render(Item(item.messages))
    packed, prompt, full = (
        "".join(part.replace("<|pad|>", "").split()) for part in (text, rendered.prompt, rendered.full)
    )
    assert prompt.removeprefix("<|bos|>") in packed or packed.removeprefix("<|bos|>") in full
