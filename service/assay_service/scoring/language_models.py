"""Recognize causal language models, and know the names of their output layers and embeddings, without torch."""

from collections.abc import Iterable, Mapping
from typing import Any

# Names of the output layer, and of the embeddings that take its place if it is tied to them.
OUTPUT_LAYERS = ("lm_head", "embed_out")
EMBEDDINGS = ("embed_tokens", "embed_in", "wte")


def is_language_model(names: Iterable[str], config: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is a causal language model; its output layer may be tied to the embeddings.

    Args:
        names: names of its tensors.
        config: its `config.json`.
    """
    if any(not set(OUTPUT_LAYERS).isdisjoint(name.split(".")) for name in names):
        return True
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.get("architectures") or [])
