"""Write tiny Python packages that have a model in a GGUF file."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["h e", "l l", "he ll", "Ġ Ġ", "Ċ Ċ", "Ġ he"]
TOKENS = ["<|end|>", "<|start|>", "<|user|>", *ALPHABET, *(merge.replace(" ", "") for merge in MERGES)]
KINDS = [3, 3, 4, *(1 for _ in TOKENS[3:])]
TEMPLATE = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"


def describe(writer: Any, **changes: Any) -> None:
    """Adds the metadata that llama.cpp's converter writes of a Llama and its tokenizer."""
    given = {"pre": "smollm", "model": "gpt2", "kinds": KINDS, "merges": MERGES, "rotated": 8, "bos": 1, **changes}
    writer.add_context_length(128)
    writer.add_feed_forward_length(64)
    writer.add_vocab_size(given.get("vocab", len(TOKENS)))
    if given["rotated"]:
        writer.add_rope_dimension_count(given["rotated"])
    writer.add_tokenizer_model(given["model"])
    writer.add_tokenizer_pre(given["pre"])
    writer.add_token_types(given["kinds"])
    writer.add_token_merges(given["merges"])
    writer.add_bos_token_id(given["bos"])
    writer.add_eos_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for add in given.get("more", ()):
        add(writer)


def publish(site: Path, name: str = "tiny_model", *, tied: bool = True, **changes: Any) -> LlamaForCausalLM:
    """Writes a package that cannot be imported and has a model; returns the model as the file rounds it."""
    if os.environ.get("CI") != "true":
        pytest.importorskip("gguf")
    from tests import gguf_writer  # noqa: PLC0415 - only where the gguf package is

    folder = site / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=tied, initializer_range=0.3,
        rope_parameters={"rope_theta": 5000.0, "rope_type": "default"}, rms_norm_eps=1e-5,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    extra = changes.pop("extra", {}) | ({} if tied else {"output.weight": model.lm_head.weight.detach().numpy()})
    written = {key: changes.pop(key) for key in ("named", "epsilon", "factor") if key in changes}
    state = gguf_writer.write(
        folder / "m.gguf", model, "Q4_1", tokens=TOKENS, extra=extra, rope_theta=5000.0,
        describe=lambda writer: describe(writer, **changes), **written,
    )  # fmt: skip
    model.model.load_state_dict(state)
    return model
