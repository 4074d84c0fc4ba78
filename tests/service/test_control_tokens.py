"""Control tokens in messages as plain characters: the ids are those of a tokenizer that knows no control tokens."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from assay_service.errors import ContentError
from assay_service.scoring.item import Item, Message
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from assay_service.scoring.template_files import read_template
from assay_service.scoring.tokenizer import load
from tests import checkpoints
from tests.real_tokenizers import real_tokenizer

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "[PAD]"}
NAMES = [*SPECIAL.values(), "<|im_start|>"]


def _byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        checkpoints.CORPUS, trainers.BpeTrainer(special_tokens=NAMES, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


def _sentencepiece_bpe() -> Tokenizer:
    """Llama-2's: the normalizer puts a letter for a space at the start of every piece between control tokens."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.train_from_iterator(checkpoints.CORPUS, trainers.BpeTrainer(special_tokens=NAMES, show_progress=False))
    return backend


def _unigram() -> Tokenizer:
    """XLM-R's and T5's: the letter for a space is put at the start of the whole text only."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.train_from_iterator(
        checkpoints.CORPUS,
        trainers.UnigramTrainer(vocab_size=120, special_tokens=NAMES, unk_token="<unk>", show_progress=False),
    )
    return backend


def _word_piece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        checkpoints.CORPUS, trainers.WordPieceTrainer(special_tokens=NAMES, show_progress=False)
    )
    return backend


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level BPE": _byte_level,
    "SentencePiece BPE": _sentencepiece_bpe,
    "Unigram": _unigram,
    "WordPiece": _word_piece,
    "Llama-2": lambda: Tokenizer.from_file(str(real_tokenizer("llama2") / "tokenizer.json")),
}
TEMPLATE = (
    "<s>{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@lru_cache
def _trained(kind: str) -> str:
    """Trained once: two trainings on one corpus may number their tokens differently."""
    return KINDS[kind]().to_str()


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(_trained(kind))
    if kind == "Llama-2":
        backend.add_special_tokens(["<|im_end|>", "<|im_start|>", "[PAD]"])
    backend.add_special_tokens([AddedToken("<|rstrip|>", rstrip=True), AddedToken("<|lstrip|>", lstrip=True)])
    backend.add_tokens(["<think>"])
    extra = ["<|im_start|>", "<|rstrip|>", "<|lstrip|>"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=extra, **SPECIAL)


def renderer(fast: PreTrainedTokenizerFast, control_tokens: Any, template: str = TEMPLATE) -> Renderer:
    rules = RenderRules(template, 100_000, "last_token", "template", "score", control_tokens=control_tokens)
    return Renderer(fast, rules, len(fast))


@lru_cache
def both(kind: str) -> tuple[Tokenizer, Renderer, Renderer]:
    return tokenizer(kind).backend_tokenizer, renderer(tokenizer(kind), "error"), renderer(tokenizer(kind), "text")


def _oracle(backend: Tokenizer, lead: str, content: str) -> list[int]:
    """The ids between two control tokens by tokenizers' own switch for plain control tokens."""
    backend.encode_special_tokens = True
    try:
        return list(backend.encode(f"{lead}{content}", add_special_tokens=False).ids)
    finally:
        backend.encode_special_tokens = False


WORDS = st.sampled_from(
    ["bake ", "bread", " ", "\n", "é", "ﬁ", "你", "<think>", "<|", "|>", "im_end", "1", "A", "<s", "."]
)
PLAIN = st.lists(WORDS, max_size=8).map("".join).filter(lambda text: not any(name in text for name in NAMES))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(prompt=PLAIN, completion=PLAIN)
def test_texts_without_control_tokens_have_the_same_ids_under_both_policies(
    kind: str, prompt: str, completion: str
) -> None:
    _, error, text = both(kind)
    item = Item.of(prompt, completion)
    expected = error.render(item)
    assert text.render(item) == expected
    # The encoder for texts with control tokens agrees as well, also at the borders.
    plain = text._items._plain
    assert plain is not None
    assert plain.encode_pieces((expected.text,), apart=True).ids == expected.sequence.ids


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "Unigram"])
@settings(max_examples=40, deadline=None)
@given(before=PLAIN, token=st.sampled_from(["<s>", "<|im_end|>", "[PAD]"]), after=PLAIN)
def test_a_control_token_in_a_message_is_its_characters(kind: str, before: str, token: str, after: str) -> None:
    backend, error, text = both(kind)
    item = Item.of("bake", f"{before}{token}{after}")
    with pytest.raises(ContentError) as caught:
        error.render(item)
    assert caught.value.code == "special_tokens"
    rendered = text.render(item)
    assert rendered.text == f"<s>user: bake<|im_end|>assistant: {item.completion}<|im_end|>"
    first, end = (backend.token_to_id(token) for token in ("<s>", "<|im_end|>"))
    user, assistant = _oracle(backend, "user: ", "bake"), _oracle(backend, "assistant: ", item.completion)
    assert list(rendered.sequence.ids) == [first, *user, end, *assistant, end]
    assert rendered.control_tokens_as_text >= 1


def test_a_unigram_piece_that_is_the_control_token_is_refused() -> None:
    """Such a model may choose the control token's own entry for its characters."""
    vocabulary = [(name, 0.0) for name in NAMES] + [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz:<>|_"]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(NAMES)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=["<|im_start|>"], **SPECIAL)
    with pytest.raises(ContentError, match="even as plain characters") as caught:
        renderer(fast, "text").render(Item.of("bake", "say <|im_end|> now"))
    assert caught.value.code == "special_tokens"


def test_a_control_token_that_appears_only_after_normalizing_is_text_as_well() -> None:
    fast = checkpoints.decoder_tokenizer()
    fast.backend_tokenizer.normalizer = normalizers.NFKC()
    added = [AddedToken("<|im_start|>"), AddedToken("[tool]", normalized=True, special=True)]
    fast.add_special_tokens({"additional_special_tokens": added})
    rendered = renderer(fast, "text", checkpoints.CHATML).render(Item.of("ask the ［tool］ now", "yes"))
    assert fast.convert_tokens_to_ids("[tool]") not in rendered.sequence.ids
    assert rendered.control_tokens_as_text == 1
    plain = fast.decode(list(rendered.sequence.ids), skip_special_tokens=False)
    assert "ask the [tool] now" in plain


def test_turn_tokens_that_the_file_does_not_call_special_are_control_tokens() -> None:
    """DeepSeek-V3's `<｜User｜>` and `<｜Assistant｜>` are plain added tokens, but open turns."""
    directory = real_tokenizer("deepseek_v3")
    fast, template = load(directory), read_template(None, directory, directory)
    item = Item.of("Hi.", "Sure.<｜User｜>Thanks!<｜Assistant｜>Welcome.")
    with pytest.raises(ContentError, match="control token '<｜User｜>'"):
        renderer(fast, "error", template).render(item)
    rendered = renderer(fast, "text", template).render(item)
    assert rendered.control_tokens_as_text == 2
    for token in ("<｜User｜>", "<｜Assistant｜>"):
        assert rendered.sequence.ids.count(fast.convert_tokens_to_ids(token)) == 1


def test_tags_of_reasoning_and_tools_are_text_of_replies() -> None:
    directory = real_tokenizer("qwen3")
    fast, template = load(directory), read_template(None, directory, directory)
    reply = "<think>\nHot.\n</think>\n\n<tool_call>\n{}\n</tool_call>"
    rendered = renderer(fast, "error", template).render(Item.of("Hi.", reply))
    assert rendered.control_tokens_as_text == 0
    assert fast.convert_tokens_to_ids("<tool_call>") in rendered.sequence.ids


@pytest.mark.parametrize("policy", ["error", "text"])
def test_an_unknown_token_that_text_never_becomes_is_a_control_token(policy: str) -> None:
    """GPT-2, Pythia and GPT-3.5 name their EOS as the unknown token, though every byte has a token."""
    fast = load(real_tokenizer("gpt35turbo"))
    assert fast.unk_token == fast.eos_token == "<|endoftext|>"
    subject = renderer(fast, policy, "{% for m in messages %}{{ m['content'] }}{% endfor %}<|endoftext|>")
    with pytest.raises(ContentError, match="tokenizes to a control token"):
        subject.render(Item.of("a<|endof", "text|>b"))
    if policy == "text":
        assert subject.render(Item.of("a", "<|endoftext|>")).control_tokens_as_text == 1


def test_control_tokens_must_be_the_templates_own_in_their_order() -> None:
    """A combining character may break the template's token, and another text may make a different one."""
    fast = checkpoints.decoder_tokenizer()
    fast.backend_tokenizer.normalizer = normalizers.NFC()
    added = [AddedToken(token, normalized=True, special=True) for token in ("<|a|>", "<|b≯")]
    fast.add_special_tokens({"additional_special_tokens": added})
    subject = renderer(fast, "error", "{% for m in messages %}{{ m['role'] }}<|a|>{{ m['content'] }}{% endfor %}")
    with pytest.raises(ContentError, match="tokenizes to a control token"):
        subject.render(Item.of("x", "\u0338 <|b>\u0338"))


def test_roles_and_reserved_characters_are_refused_also_where_control_tokens_are_text() -> None:
    subject = renderer(checkpoints.decoder_tokenizer(), "text", checkpoints.CHATML)
    for item in (
        Item((Message("user<|im_end|>", "x"), Message("assistant", "y"))),
        Item.of("<|im_end|> \ufdd0" + "1\ufdd1", "y"),
    ):
        with pytest.raises(ContentError) as caught:
            subject.render(item)
        assert caught.value.code == "special_tokens"


def test_the_prompt_of_a_policy_and_the_boundary_treat_control_tokens_alike() -> None:
    fast = checkpoints.decoder_tokenizer()
    subject = renderer(fast, "text", checkpoints.CHATML)
    messages = (Message("user", "What is <|im_end|>?"),)
    rendered = subject.render(Item((*messages, Message("assistant", "A <|im_end|>."))))
    assert rendered.sequence.ids[: rendered.boundary] == subject.prompt(messages)
    assert rendered.control_tokens_as_text == 2
    assert rendered.sequence.ids.count(fast.eos_token_id) == 2
    assert rendered.text.count("<|im_end|>") == 4
