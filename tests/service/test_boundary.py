"""Where a completion begins, under the rules of the tokenizers that are in use: the ids are transformers' own, and the
prompt's are a prefix that completions share, whatever the completion begins with."""

from collections.abc import Callable

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from assay_service.scoring.item import Item
from assay_service.scoring.layout import pack
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from tests import checkpoints

# Patterns of the published tokenizers: GPT-2's is tokenizers' own ByteLevel; Llama-3's and Qwen2's differ in how many
# digits stay together.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CORPUS = [*checkpoints.CORPUS, "assistant\n\n\nassistant\n\nyes assistant: yes\n 12 345\n\n  7  😀 😀👍\n\t's. the"] * 3
COMPLETIONS = [
    "yes",
    "\nyes",
    "\n\n\nyes",
    " yes",
    "  yes",
    "\tyes",
    "7",
    "12 is it",
    "😀",
    "👍😀 yes",
    "'s",
    ".",
    "",
    " ",
]
TEMPLATES = {
    "chatml": checkpoints.CHATML,
    "llama3": checkpoints.LLAMA3,
    "ends in a colon": "{%- for m in messages -%}{{ m['role'] }}:{{ m['content'] }}{{ '\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}assistant:{%- endif -%}",
    "ends in a space": "{%- for m in messages -%}{{ m['role'] }}: {{ m['content'] }}{{ '\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'assistant: ' }}{%- endif -%}",
    "ends in a digit": "{%- for m in messages -%}{{ m['role'] }} 1{{ m['content'] }}{{ '\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'assistant 1' }}{%- endif -%}",
}


def _byte_level(pattern: str | None) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece() -> Tokenizer:
    """Llama-2's: spaces are a letter, and merges run across everything but them."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return backend


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: _byte_level(None),
    "llama3": lambda: _byte_level(LLAMA3),
    "qwen2": lambda: _byte_level(QWEN2),
    "sentencepiece": _sentencepiece,
}


def build(name: str, template: str) -> PreTrainedTokenizerFast:
    backend = TOKENIZERS[name]()
    specials = ["<unk>", "<|bos|>", "<|im_end|>", "<|pad|>", "<|im_start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=specials,
        initial_alphabet=[] if name == "sentencepiece" else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = template
    return fast


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_transformers_and_the_prompt_is_a_prefix(name: str, template: str) -> None:
    fast = build(name, template)
    renderer = Renderer(fast, RenderRules(template, 200, "last_token", "template", "score"), len(fast))
    user = {"role": "user", "content": "the fox 1"}
    alone = fast.apply_chat_template([user], add_generation_prompt=True, tokenize=True, return_dict=False)
    boundaries = set()
    for completion in COMPLETIONS:
        messages = [user, {"role": "assistant", "content": completion}]
        expected = fast.apply_chat_template(messages, tokenize=True, return_dict=False)
        sequence = renderer.render(Item.of("the fox 1", completion)).sequence
        assert list(sequence.ids) == expected
        assert list(sequence.prompt) == alone[: sequence.boundary]
        if sequence.boundary < len(alone):  # the token after the boundary is another one: it merged
            assert sequence.ids[sequence.boundary] != alone[sequence.boundary]
        boundaries.add(sequence.boundary)
    row = pack([renderer.render(Item.of("the fox 1", c)).sequence for c in COMPLETIONS], share_prompts=True)
    assert sum(segment.prefix is None for segment in row.segments) == len(boundaries)  # each boundary's prompt once
