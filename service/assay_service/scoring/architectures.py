"""The architectures that are served, each held to a parity test, and what scoring must know of them."""

import math
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
        type_vocab_size: what transformers assumes where `config.json` has no such key; None where the architecture's
            tokenizers never set token types, so that every token has type 0.
    """

    causal: bool
    packed: bool = True
    head: str = "score"
    head_bias: bool = False
    dense: str | None = None
    positions_after_pad: bool = False
    type_vocab_size: int | None = None


_DECODER = Architecture(causal=True)

ARCHITECTURES: Mapping[str, Architecture] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma", "gpt_neox"), _DECODER),
    "bert": Architecture(causal=False, head="classifier", head_bias=True, dense="pooler.dense", type_vocab_size=2),
    "roberta": Architecture(
        causal=False, head="classifier", head_bias=True, dense="classifier.dense", positions_after_pad=True
    ),
    "deberta-v2": Architecture(
        causal=False, packed=False, head="classifier", head_bias=True, dense="pooler.dense", type_vocab_size=0
    ),
}

# longrope and dynamic pick their frequencies by the longest sequence of the row: neighbours would matter.
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})

# Those that stretch positions by a factor.
_SCALED_ROPES = frozenset({"linear", "llama3", "yarn"})

# The pad of a RoBERTa whose configuration names none, in transformers.
_ROBERTA_PAD = 1


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
    if architecture is None or not architecture.positions_after_pad:
        return 0
    pad = config.get("pad_token_id", _ROBERTA_PAD)
    if pad is None:
        raise StartError(
            "config.json: pad_token_id is null, and the positions of this architecture begin after its pad"
        )
    return int(pad) + 1


def longest_sequence(config: Mapping[str, Any]) -> int | None:
    """Tokens for which there are positions; None where the configuration does not say."""
    positions = config.get("max_position_embeddings")
    return positions - first_position(config) if isinstance(positions, int) else None


def longest_scaled(config: Mapping[str, Any]) -> int | None:
    """Return the tokens that a scaling of rotary positions reaches; None where the configuration has none.

    Qwen's way to declare yarn keeps `max_position_embeddings` at the length before scaling. The scaling then reaches
    `factor` times `original_max_position_embeddings`. Both spellings are read: `rope_parameters` of transformers 5 and
    the older `rope_scaling`.

    Raises:
        StartError: the scaling's numbers are not numbers.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) not in _SCALED_ROPES:
        return None
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    if factor is None or original is None:
        return None
    if not all(isinstance(number, int | float) and 0 < number < math.inf for number in (factor, original)):
        raise StartError(f"config.json: rope scaling: factor {factor!r} of {original!r} positions is not a length")
    return int(factor * original)


def token_types(config: Mapping[str, Any]) -> int:
    """Return how many token types (segments) a base tells apart; 1 where it has none or never gets any but 0."""
    architecture = ARCHITECTURES.get(config.get("model_type", ""))
    if architecture is None or architecture.type_vocab_size is None:
        return 1
    declared = config.get("type_vocab_size")
    return max(1, architecture.type_vocab_size if declared is None else declared)


def activation_of(config: Mapping[str, Any]) -> str:
    """What a classifier's dense layer is followed by."""
    return str(config.get("pooler_hidden_act", "gelu")) if config.get("model_type") == "deberta-v2" else "tanh"
