"""A small Llama of one's own: tokenizer and random weights, and later the rounding to what is published.

python training/pipeline/base.py new DATA OUT     # from the texts of DATA/oasst1_en_train_text
python training/pipeline/base.py round IN OUT     # weights to bf16, as published models are
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from assay_service.scoring.tokenizer import write
from assay_training.records.rows import rows_of_files

VOCABULARY = 4096
END, START, PAD = "<|im_end|>", "<|im_start|>", "<PAD>"
SHAPE = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 704,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def texts(data: Path) -> Iterator[str]:
    """What the tokenizer is trained on."""
    for row in rows_of_files(data / "oasst1_en_train_text"):
        yield row.get("text", str)


def tokenizer(data: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the special tokens of [CRS] figure 15."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, START, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=True,
    )
    backend.train_from_iterator(texts(data), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=PAD, additional_special_tokens=[START]
    )


def new(data: Path, out: Path) -> None:
    """Tokenizer and random weights."""
    fast = tokenizer(data)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id, bos_token_id=None, **SHAPE
    )
    model = AutoModelForCausalLM.from_config(config)
    fast.save_pretrained(out)
    model.save_pretrained(out)  # last: `make` takes the weights for all of it
    sys.stdout.write(f"{out}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {len(fast)} tokens\n")


def rounded(source: Path, out: Path) -> None:
    """The same model with bf16 weights."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.config.save_pretrained(out)
    write(source, out, (source / "chat_template.jinja").read_text())
    model.save_pretrained(out)


if __name__ == "__main__":
    {"new": new, "round": rounded}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
