"""Build the base model of the small pipeline: a tokenizer, a Llama with random weights, and its rounding to bf16.

python training/pipeline/base.py new DATA OUT     # tokenizer trained on the texts of DATA/oasst1_en_train_text
python training/pipeline/base.py round IN OUT     # weights rounded to bf16, as in published models
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from assay_service.scoring.tokenizer import write
from assay_training.records.rows import read_folder_rows

VOCABULARY = 4096
# ChatML's tokens: the end of a turn is the EOS token, so that generation stops there.
END, START, PAD = "<|im_end|>", "<|im_start|>", "<PAD>"
# Small enough to train on CPUs; grouped-query attention, as in the models that the service is used with.
SHAPE = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 704,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def read_texts(data: Path) -> Iterator[str]:
    """Yield the texts on which the tokenizer is trained.

    Raises:
        RecordError: the folder or its field `text` is missing.
    """
    for row in read_folder_rows(data / "oasst1_en_train_text"):
        yield row.get("text", str)


def train_tokenizer(data: Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with the special tokens of [CRS] figure 15."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, START, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=True,
    )
    backend.train_from_iterator(read_texts(data), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=PAD, additional_special_tokens=[START]
    )


def build_base(data: Path, out: Path) -> None:
    """Train a tokenizer, and save it with a model of random weights."""
    fast = train_tokenizer(data)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id, bos_token_id=None, **SHAPE
    )
    model = AutoModelForCausalLM.from_config(config)
    fast.save_pretrained(out)
    model.save_pretrained(out)  # last, because the Makefile takes the weights as proof that all files are written
    sys.stdout.write(f"{out}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {len(fast)} tokens\n")


def round_weights(source: Path, out: Path) -> None:
    """Save a copy of a model with bf16 weights."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.config.save_pretrained(out)
    write(source, out, (source / "chat_template.jinja").read_text())
    model.save_pretrained(out)


if __name__ == "__main__":
    {"new": build_base, "round": round_weights}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
