"""The architectures that are served, each held to a parity test, and what scoring must know of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from assay_service.errors import StartError


@dataclass(frozen=True, slots=True)
class Architecture:
    """What scoring must know of a transformers model type.

    Attributes:
        causal: a token sees only what stands before it, so completions can share their prompt.
        packed: its attention goes through transformers' interface; the others run one sequence per forward.
        head: what transformers calls the head of a classifier.
        head_bias: whether that has a bias.
        dense: what transformers calls the layer that a classifier has between hidden state and head; None for none.
        positions_after_pad: positions count from behind the pad token's id (fairseq's convention).
    """

    causal: bool
    packed: bool = True
    head: str = "score"
    head_bias: bool = False
    dense: str | None = None
    positions_after_pad: bool = False


_DECODER = Architecture(causal=True)

ARCHITECTURES: Mapping[str, Architecture] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma", "gpt_neox"), _DECODER),
    "bert": Architecture(causal=False, head="classifier", head_bias=True, dense="pooler.dense"),
    "roberta": Architecture(
        causal=False, head="classifier", head_bias=True, dense="classifier.dense", positions_after_pad=True
    ),
    "deberta-v2": Architecture(causal=False, packed=False, head="classifier", head_bias=True, dense="pooler.dense"),
}

# longrope and dynamic pick their frequencies by the longest sequence of the row: neighbours would matter.
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})


def architecture_of(config: Mapping[str, Any], where: object) -> Architecture:
    """The architecture of a checkpoint.

    Args:
        config: its `config.json`.
        where: what to call it in errors.

    Raises:
        StartError: with the reason why it is not served.
    """
    name = str(config.get("model_type"))
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise StartError(f"{where}: architecture {name!r} is not served; served are {known}")
    if config.get("is_decoder") or config.get("quantization_config"):
        raise StartError(f"{where}: is_decoder and quantised checkpoints are not served")
    if ARCHITECTURES[name].causal and (config.get("is_causal") is False or config.get("use_bidirectional_attention")):
        raise StartError(f"{where}: a decoder that attends in both directions is not served")
    return ARCHITECTURES[name]


def first_position(config: Mapping[str, Any]) -> int:
    """The position of a sequence's first token."""
    architecture = ARCHITECTURES.get(config.get("model_type", ""))
    return config["pad_token_id"] + 1 if architecture is not None and architecture.positions_after_pad else 0


def longest_sequence(config: Mapping[str, Any]) -> int | None:
    """Tokens for which there are positions; None where the configuration does not say."""
    positions = config.get("max_position_embeddings")
    return positions - first_position(config) if isinstance(positions, int) else None


def activation_of(config: Mapping[str, Any]) -> str:
    """What a classifier's dense layer is followed by."""
    return str(config.get("pooler_hidden_act", "gelu")) if config.get("model_type") == "deberta-v2" else "tanh"
