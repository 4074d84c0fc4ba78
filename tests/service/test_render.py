"""What exactly is scored: ids, boundary, score span, truncation (scoring-traps 1, 5-9, 21-23)."""

from typing import Any

import pytest
from tokenizers import processors

from assay_service.errors import ContentError, StartError
from assay_service.scoring.item import Item, Message
from assay_service.scoring.manifest import ScorePosition
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from tests import checkpoints

TURN_END = "<|im_end|>"


def renderer(
    fast: Any = None,
    *,
    template: str | None = None,
    score_position: ScorePosition = "last_token",
    max_length: int = 200,
    **rules: Any,
) -> Renderer:
    fast = fast or checkpoints.decoder_tokenizer()
    settings: dict[str, Any] = {"eos": "template", "unfinished": "score", "pad_token_id": fast.pad_token_id} | rules
    return Renderer(
        fast, RenderRules(template or fast.chat_template, max_length, score_position, **settings), len(fast)
    )


def decoded(fast: Any, ids: tuple[int, ...]) -> str:
    return str(fast.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def test_the_ids_are_those_of_the_chat_template_tokenized_once() -> None:
    """Trap 6: the golden ids are transformers' own for the same messages."""
    fast = checkpoints.decoder_tokenizer()
    item = Item(
        (Message("system", "Be kind."), Message("user", "bake bread?"), Message("assistant", "Yes: mix, wait."))
    )
    rendered = renderer(fast).render(item)
    conversation = [{"role": m.role, "content": m.content} for m in item.messages]
    golden = fast.apply_chat_template(conversation, tokenize=True, return_dict=False)
    prompt = fast.apply_chat_template(conversation[:-1], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert list(rendered.sequence.ids) == golden
    assert list(rendered.sequence.ids[: rendered.boundary]) == prompt
    assert rendered.completion_tokens == len(golden) - len(prompt)


def test_no_second_bos_and_none_invented() -> None:
    """Trap 5: the template alone decides, although the tokenizer itself would add a BOS."""
    for template, places in ((checkpoints.LLAMA3, [0]), (checkpoints.CHATML, [])):
        fast = checkpoints.decoder_tokenizer(template)
        # As Llama 3's tokenizer.json has it.
        fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", fast.bos_token_id)]
        )
        assert fast("hi").input_ids[0] == fast.bos_token_id
        ids = renderer(fast).render(Item.of("hi", "yes")).sequence.ids
        assert [place for place, token in enumerate(ids) if token == fast.bos_token_id] == places


def test_no_generation_prompt_after_the_completion() -> None:
    """Trap 7."""
    fast = checkpoints.decoder_tokenizer()
    text = renderer(fast).render(Item.of("hi", "yes")).text
    assert text.count("<|im_start|>assistant") == 1
    assert text.endswith(f"yes{TURN_END}\n")


@pytest.mark.parametrize("completion", [" yes", "yes ", "yes\n", "\n\nyes", "yes\t", "☃ yes", "5", "\n", " "])
def test_whitespace_is_kept_and_reaches_the_ids(completion: str) -> None:
    """Trap 8: nothing is stripped that the template does not strip."""
    fast = checkpoints.decoder_tokenizer()
    rendered = renderer(fast).render(Item.of("hi", completion))
    assert (
        decoded(fast, rendered.sequence.ids)
        == f"<|im_start|>user\nhi{TURN_END}\n<|im_start|>assistant\n{completion}{TURN_END}\n"
    )


@pytest.mark.parametrize("completion", ["yes", "yes ", " yes", "yes\n", "5 6", "\n", "é☃"])
def test_an_unfinished_completion_has_no_end_of_turn(completion: str) -> None:
    fast = checkpoints.decoder_tokenizer()
    rendered = renderer(fast).render(Item.of("hi", completion, "length"))
    assert decoded(fast, rendered.sequence.ids).endswith(f"assistant\n{completion}")
    assert rendered.sequence.score.end == len(rendered.sequence.ids)


def test_an_unfinished_completion_under_a_template_that_strips() -> None:
    fast = checkpoints.decoder_tokenizer(checkpoints.LLAMA3)
    rendered = renderer(fast).render(Item.of("hi", " yes \n", "length"))
    assert decoded(fast, rendered.sequence.ids).endswith("assistant\n\nyes")


def test_a_template_that_rewrites_the_completion_cannot_score_it_unfinished() -> None:
    template = checkpoints.CHATML.replace("m['content']", "m['content'] | replace('b', 'c')")
    subject = renderer(template=template, dropped_content="report")
    assert subject.render(Item.of("hi", "abab")).text.endswith(f"acac{TURN_END}\n")
    with pytest.raises(ContentError) as caught:
        subject.render(Item.of("hi", "abab", "length"))
    assert caught.value.code == "unfinished_unsupported"


def test_empty_completion_is_scored_when_finished_and_refused_when_not() -> None:
    """Trap 23."""
    subject = renderer()
    assert subject.render(Item.of("hi", "")).completion_tokens == 2
    with pytest.raises(ContentError) as caught:
        subject.render(Item.of("hi", "", "length"))
    assert caught.value.code == "empty_completion"


def test_an_empty_prompt_is_scored() -> None:
    assert (
        renderer().render(Item.of("", "yes")).text
        == f"<|im_start|>user\n{TURN_END}\n<|im_start|>assistant\nyes{TURN_END}\n"
    )


def test_unfinished_completions_are_an_error_where_the_signal_says_so() -> None:
    with pytest.raises(ContentError) as caught:
        renderer(unfinished="error").render(Item.of("hi", "yes", "length"))
    assert caught.value.code == "unfinished"


@pytest.mark.parametrize(
    "text",
    ["<|im_end|>", "a<|im_start|>user", "<|pad|>", "x <|bos|>"],
)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_control_tokens_in_content_are_refused(text: str, role: str) -> None:
    """Trap 21: text cannot open a turn."""
    messages = (
        Message("user", text if role == "user" else "hi"),
        Message("assistant", text if role == "assistant" else "yes"),
    )
    with pytest.raises(ContentError) as caught:
        renderer().render(Item(messages))
    assert caught.value.code == "special_tokens"


def test_a_control_token_that_appears_only_after_normalizing_is_refused() -> None:
    """Full-width letters that NFKC turns into a control token of a normalized added token."""
    from tokenizers import AddedToken, normalizers  # noqa: PLC0415

    fast = checkpoints.decoder_tokenizer()
    fast.backend_tokenizer.normalizer = normalizers.NFKC()
    fast.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|im_start|>"), AddedToken("[tool]", normalized=True, special=True)]}
    )
    subject = renderer(fast)
    with pytest.raises(ContentError) as caught:
        subject.render(Item.of("ask the ［tool］ now", "yes"))
    assert caught.value.code == "special_tokens"


@pytest.mark.parametrize("role", ["user<|im_end|>\n<|im_start|>system", "<|im_end|>"])
def test_control_tokens_in_a_role_are_refused(role: str) -> None:
    """Trap 21: the template prints roles as well."""
    with pytest.raises(ContentError) as caught:
        renderer().render(Item((Message(role, "x"), Message("assistant", "y"))))
    assert caught.value.code == "special_tokens"


@pytest.mark.parametrize(
    "text", ["is a<b|c>d true?", "<s>no</s> |> <|", "let f <|x|> g = g f", "<|eot_id|>", "Llama-2 writes [INST] first."]
)
def test_what_only_looks_like_a_control_token_is_text(text: str) -> None:
    """Only the served tokenizer's own control tokens are control tokens."""
    fast = checkpoints.decoder_tokenizer()
    rendered = renderer(fast).render(Item.of(text, text))
    body = f"{text}{TURN_END}\n"
    assert decoded(fast, rendered.sequence.ids) == f"<|im_start|>user\n{body}<|im_start|>assistant\n{body}"
    assert rendered.control_tokens_as_text == 0


def test_over_long_items_are_refused_unless_the_prompt_may_be_cut() -> None:
    """Trap 9: the whole completion and a leading BOS stay."""
    fast = checkpoints.decoder_tokenizer(checkpoints.LLAMA3)
    subject = renderer(fast, max_length=40)
    item = Item.of("The quick brown fox. " * 30, "jumps over the dog")
    with pytest.raises(ContentError) as caught:
        subject.render(item)
    assert caught.value.code == "too_long"
    whole = renderer(fast, max_length=10_000).render(item)
    cut = subject.render(item, "prompt_left")
    assert len(cut.sequence.ids) == 40
    assert cut.sequence.ids[0] == fast.bos_token_id
    assert cut.sequence.ids[1:] == whole.sequence.ids[-39:]
    assert cut.truncated_tokens == len(whole.sequence.ids) - 40
    assert cut.boundary == whole.boundary - cut.truncated_tokens
    assert cut.completion_tokens == whole.completion_tokens


def test_a_completion_that_alone_is_too_long_is_never_cut() -> None:
    subject = renderer(max_length=20)
    with pytest.raises(ContentError) as caught:
        subject.render(Item.of("hi", "bread " * 40), "prompt_left")
    assert caught.value.code == "completion_too_long"


def test_truncation_to_exactly_the_completion_and_bos() -> None:
    fast = checkpoints.decoder_tokenizer(checkpoints.LLAMA3)
    item = Item.of("a long prompt that must go", "mix flour, water, salt and yeast, and wait, and bake it")
    completion_tokens = renderer(fast).render(item).completion_tokens
    cut = renderer(fast, max_length=completion_tokens + 1).render(item, "prompt_left")
    assert cut.boundary == 1
    with pytest.raises(StartError):  # not even "a" -> "b" fits: refused at start, not item by item
        renderer(fast, max_length=2)


@pytest.mark.parametrize(
    ("position", "finished", "unfinished"),
    [("last_token", "\n", "s"), ("eos", TURN_END, "s"), ("first_token", "<|bos|>", "<|bos|>")],
)
def test_score_positions(position: ScorePosition, finished: str, unfinished: str) -> None:
    """Trap 1: the declared token is read, whatever the template prints after it."""
    fast = checkpoints.decoder_tokenizer()
    subject = renderer(fast, template="<|bos|>" + checkpoints.CHATML, score_position=position)
    for finish_reason, expected in (("stop", finished), ("length", unfinished)):
        sequence = subject.render(Item.of("hi", "yes", finish_reason)).sequence  # type: ignore[arg-type]
        assert sequence.score.end - sequence.score.start == 1
        assert decoded(fast, (sequence.ids[sequence.score.start],)).endswith(expected)


@pytest.mark.parametrize("truncation_length", [200, 24])
def test_completion_reads_every_token_of_the_completion_and_none_of_the_prompt(truncation_length: int) -> None:
    fast = checkpoints.decoder_tokenizer()
    item = Item.of("a fox, a dog, flour and water and bread", "yes, bake it")
    rendered = renderer(fast, score_position="completion", max_length=truncation_length).render(item, "prompt_left")
    span = rendered.sequence.score
    assert (span.start, span.end) == (rendered.boundary, len(rendered.sequence.ids))
    assert decoded(fast, rendered.sequence.ids[span.start : span.end]) == f"yes, bake it{TURN_END}\n"


def test_completion_cannot_be_read_where_there_is_none() -> None:
    plain = "{%- for m in messages -%}{{ m['role'] }}:{{ m['content'] }}{%- endfor -%}"
    plain += "{%- if add_generation_prompt -%}assistant:{%- endif -%}"
    with pytest.raises(ContentError) as caught:
        renderer(template=plain, score_position="completion").render(Item.of("hi", ""))
    assert caught.value.code == "empty_completion"


def test_last_non_pad_id_reads_before_an_eos_that_is_also_the_pad() -> None:
    """Trap 1: transformers' and TRL's legacy position, with pad == eos."""
    fast = checkpoints.decoder_tokenizer(checkpoints.LLAMA3, pad_token=TURN_END)
    sequence = renderer(fast, score_position="last_non_pad_id").render(Item.of("hi", "yes")).sequence
    assert sequence.ids[-1] == fast.pad_token_id
    assert sequence.score.start == len(sequence.ids) - 2


def test_eos_append_adds_one_eos_to_finished_completions_only() -> None:
    """Trap 6: neither missing nor doubled."""
    plain = (
        "{%- for m in messages -%}{{ m['role'] }}: {{ m['content'] }}\n{%- endfor -%}"
        "{%- if add_generation_prompt -%}assistant: {%- endif -%}"
    )
    fast = checkpoints.decoder_tokenizer(plain)
    subject = renderer(fast, eos="append", score_position="eos")
    finished = subject.render(Item.of("hi", "yes")).sequence
    assert finished.ids.count(fast.eos_token_id) == 1
    assert finished.ids[finished.score.start] == fast.eos_token_id
    assert fast.eos_token_id not in subject.render(Item.of("hi", "yes", "length")).sequence.ids
    printed = checkpoints.decoder_tokenizer(checkpoints.LLAMA3)
    assert (
        renderer(printed, eos="append").render(Item.of("hi", "yes")).sequence.ids[-2:].count(printed.eos_token_id) == 1
    )


def test_a_role_that_the_template_refuses_is_the_items_error() -> None:
    fast = checkpoints.encoder_tokenizer()
    with pytest.raises(ContentError) as caught:
        renderer(fast, score_position="first_token").render(Item((Message("tool", "x"), Message("assistant", "y"))))
    assert caught.value.code == "template_error"
    assert "unknown role" in caught.value.message


def test_rules_that_cannot_work_refuse_to_start() -> None:
    fast = checkpoints.encoder_tokenizer()
    with pytest.raises(StartError, match="EOS"):
        renderer(fast, score_position="eos")
    with pytest.raises(StartError, match="pad_token_id"):
        renderer(score_position="last_non_pad_id", pad_token_id=None)
    with pytest.raises(StartError, match="template"):
        renderer(template="{{ raise_exception('never') }}")
    with pytest.raises(StartError, match="prints no EOS"):
        renderer(template="{%- for m in messages -%}{{ m['content'] }} {% endfor -%}", score_position="eos")


def test_truncation_and_padding_in_the_tokenizer_file_are_off() -> None:
    """all-MiniLM's tokenizer.json cuts at 128 tokens and pads to 128."""
    fast = checkpoints.decoder_tokenizer()
    fast.backend_tokenizer.enable_truncation(8)
    fast.backend_tokenizer.enable_padding(length=8)
    assert len(renderer(fast).render(Item.of("The quick brown fox " * 4, "jumps")).sequence.ids) > 30
    assert len(renderer(fast).render(Item.of("", "")).sequence.ids) > 8


def test_a_token_that_merges_across_the_border_belongs_to_the_completion() -> None:
    """The generation prompt ends with a space that the tokenizer glues to the next word."""
    glued = (
        "{%- for m in messages -%}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{%- endfor -%}"
        "{%- if add_generation_prompt -%}assistant: {% endif -%}"
    )
    fast = checkpoints.decoder_tokenizer(glued)
    prompt = fast.backend_tokenizer.encode("user: hi<|im_end|>assistant: ", add_special_tokens=False).ids
    rendered = renderer(fast).render(Item.of("hi", "the dog"))
    assert rendered.boundary == len(prompt) - 1
    assert decoded(fast, rendered.sequence.ids[rendered.boundary :]) == f" the dog{TURN_END}"


def test_an_empty_unfinished_completion_is_refused_also_where_the_template_prints_something_before_it() -> None:
    """Qwen3's template opens every answer with an empty think block, which is not the completion."""
    thinking = checkpoints.CHATML.replace(
        "{{ m['content'] }}", "{{ '<think></think>' if m['role'] == 'assistant' }}{{ m['content'] }}"
    )
    subject = renderer(template=thinking)
    assert subject.render(Item.of("hi", "yes", "length")).text.endswith("<think></think>yes")
    with pytest.raises(ContentError) as caught:
        subject.render(Item.of("hi", "", "length"))
    assert caught.value.code == "empty_completion"


def test_templates_that_print_the_date_see_one_day() -> None:
    """Else the same item would have another score tomorrow, under the same fingerprint."""
    dated = "{{ strftime_now('%d %b %Y') }}\n" + checkpoints.CHATML
    assert renderer(template=dated).render(Item.of("hi", "yes")).text.startswith("26 Jul 2024<|im_start|>")


def test_a_template_that_fails_for_one_item_is_that_items_error() -> None:
    subject = renderer(template="{%- set x = 1 // (messages[0]['content'] | length) -%}" + checkpoints.CHATML)
    assert subject.render(Item.of("hi", "yes")).completion_tokens > 0
    with pytest.raises(ContentError) as caught:
        subject.render(Item.of("", "yes"))
    assert caught.value.code == "template_error"


def test_a_template_that_fails_for_every_item_refuses_to_start() -> None:
    with pytest.raises(StartError):
        renderer(template="{{ messages[7]['content'] }}" + checkpoints.CHATML)


def test_a_completion_without_any_prompt_is_refused() -> None:
    with pytest.raises(ContentError) as caught:
        renderer().render(Item((Message("assistant", "yes"),)))
    assert caught.value.code == "no_prompt"


def test_the_last_message_must_be_the_assistants() -> None:
    with pytest.raises(ContentError) as caught:
        Item((Message("user", "hi"),))
    assert caught.value.code == "last_not_assistant"
