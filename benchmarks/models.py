"""Write the model that is benchmarked: a random Llama of 84 million parameters with a tokenizer of its own."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.workloads import make_text

TEMPLATE = (
    "{%- for m in messages -%}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)
VOCABULARY = 8192


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 8,192 entries on `texts`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = TEMPLATE
    return fast


def make_words() -> Iterator[str]:
    """Make texts of the words of the workloads."""
    draw = random.Random(0)
    return (f"user\nassistant\n{make_text(draw, 200)}" for _ in range(200))


def write_llama(directory: Path, texts: Iterable[str], *, layers: int = 12) -> Path:
    """Write the random Llama in bf16: hidden 768, 12 layers, 12 heads, 6 KV heads, intermediate 2048."""
    fast = train_tokenizer(texts)
    config = LlamaConfig(
        hidden_size=768,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=6,
        intermediate_size=2048,
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        pad_token_id=fast.pad_token_id,
        num_labels=1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory
