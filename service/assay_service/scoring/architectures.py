"""List the architectures that are served, each with a parity test, and the properties that scoring depends on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from assay_service.errors import StartError


@dataclass(frozen=True, slots=True)
class Architecture:
    """Properties of a transformers model type that scoring depends on.

    Attributes:
        causal: whether a token sees only the tokens before it, so that completions can share their prompt.
        packed: whether its attention goes through transformers' interface; the others run one sequence per forward
            pass.
        head: name of a classifier's head in transformers.
        head_bias: whether that head has a bias.
        dense: name of the layer between hidden state and head of a classifier in transformers; None if there is none.
        norm: name of the norm after that layer; None if there is none.
        positions_after_pad: whether positions start after the pad token's id (fairseq's convention).
        type_vocab_size: number of token types that transformers assumes if `config.json` has no such key. None if the
            tokenizers of the architecture never set token types, so that every token has type 0.
    """

    causal: bool
    packed: bool = True
    head: str = "score"
    head_bias: bool = False
    dense: str | None = None
    norm: str | None = None
    positions_after_pad: bool = False
    type_vocab_size: int | None = None

    @property
    def shares_prompts(self) -> bool:
        """Return whether completions of one prompt compute it once."""
        return self.causal and self.packed

    @property
    def before_head(self) -> tuple[str, ...]:
        """Return the names of the layers between hidden state and head."""
        return tuple(name for name in (self.dense, self.norm) if name is not None)


_DECODER = Architecture(causal=True)
_ROBERTA = Architecture(
    causal=False, head="classifier", head_bias=True, dense="classifier.dense", positions_after_pad=True
)

ARCHITECTURES: Mapping[str, Architecture] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma", "gpt_neox"), _DECODER),
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2", "phi3", "qwen3_moe"), _DECODER),
    "modernbert": Architecture(causal=False, head="classifier", head_bias=True, dense="head.dense", norm="head.norm"),
    "bert": Architecture(causal=False, head="classifier", head_bias=True, dense="pooler.dense", type_vocab_size=2),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "qwen3_5_text": Architecture(causal=True, packed=False),
    "deberta-v2": Architecture(
        causal=False, packed=False, head="classifier", head_bias=True, dense="pooler.dense", type_vocab_size=0
    ),
}

# Types whose text model alone is served, and its type.
_MULTIMODAL = {"gemma3": "gemma3_text", "qwen3_5": "qwen3_5_text"}

# `dynamic` chooses its frequencies by the longest sequence of a row, so a score would depend on its batch. `longrope`
# does so too, but only beyond its original length, which is then the limit.
_ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn", "longrope"})

# The name of `longrope` in the first Phi-3 files.
_OLD_LONGROPE = "su"

# Types that stretch positions by a factor.
_SCALED_ROPES = frozenset({"linear", "llama3", "yarn"})

# The pad token id that transformers gives a RoBERTa whose configuration names none.
_ROBERTA_PAD = 1


def read_class(config: Mapping[str, Any]) -> str:
    """Return the class that a `config.json` names; "" if it names none."""
    return str((config.get("architectures") or [""])[0])


def read_architecture(config: Mapping[str, Any], where: object) -> Architecture:
    """Return the architecture of a checkpoint.

    Args:
        config: parsed `config.json` of the checkpoint.
        where: name of the checkpoint in errors.

    Raises:
        StartError: the architecture, or an option in the configuration, is not served.
    """
    name = str(config.get("model_type"))
    if name in _MULTIMODAL:
        raise StartError(
            f"{where}: architecture {name!r} also reads images, and Assay scores text only; save its text model alone "
            f"as {_MULTIMODAL[name]!r} (the commands are in docs/checkpoints.md, under Multimodal checkpoints)"
        )
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise StartError(f"{where}: architecture {name!r} is not served; use a model of one of these: {known}")
    if config.get("is_decoder"):
        raise StartError(f"{where}: checkpoints with `is_decoder` are not served; declare an encoder without it")
    if ARCHITECTURES[name].causal and (config.get("is_causal") is False or config.get("use_bidirectional_attention")):
        raise StartError(
            f"{where}: a decoder that attends in both directions (`is_causal: false` or `use_bidirectional_attention`) "
            "is not served; use a model that attends to earlier tokens only, or an encoder"
        )
    check_ropes(_read_rope(config), where)
    return ARCHITECTURES[name]


def find_position_pad(config: Mapping[str, Any]) -> int | None:
    """Return the token id whose successor is the first position; None if positions start at 0.

    A token with this id has itself as its position, and the tokens after it are counted without it.

    Raises:
        StartError: positions start after the pad, but the configuration has none.
    """
    architecture = ARCHITECTURES.get(config.get("model_type", ""))
    if architecture is None or not architecture.positions_after_pad:
        return None
    pad = config.get("pad_token_id", _ROBERTA_PAD)
    if pad is None:
        raise StartError(
            "config.json: pad_token_id is null, but the positions of this architecture start after its pad; set it to "
            "the id with which the model was trained"
        )
    return int(pad)


def find_first_position(config: Mapping[str, Any]) -> int:
    """Return the position of a sequence's first token.

    Raises:
        StartError: see `find_position_pad`.
    """
    pad = find_position_pad(config)
    return 0 if pad is None else pad + 1


def find_longest_sequence(config: Mapping[str, Any]) -> int | None:
    """Return the number of tokens for which there are positions; None if the configuration does not say it.

    With `longrope` (Phi-3) it is the original length: beyond it all positions would get other frequencies, also those
    of the shorter sequences beside it.

    Raises:
        StartError: `longrope` without its original length.
    """
    positions = config.get("max_position_embeddings")
    longest = positions - find_first_position(config) if isinstance(positions, int) else None
    if _read_rope_type(config) != "longrope":
        return longest
    # Phi-3 has the length beside the scaling, and transformers prefers it there.
    original = config.get("original_max_position_embeddings") or _read_rope(config).get(
        "original_max_position_embeddings"
    )
    if not isinstance(original, int) or isinstance(original, bool) or original < 1:
        raise StartError(
            f"config.json: original_max_position_embeddings is {original!r}; set it to the number of positions before "
            "scaling, which `longrope` needs"
        )
    return original if longest is None else min(longest, original)


def find_longest_scaled(config: Mapping[str, Any]) -> int | None:
    """Return the number of tokens that a scaling of rotary positions reaches; None if the configuration has none.

    Qwen's way to declare yarn keeps `max_position_embeddings` at the length before scaling. The scaling then reaches
    `factor` times `original_max_position_embeddings`. Both spellings are read: `rope_parameters` of transformers 5 and
    the older `rope_scaling`.

    Raises:
        StartError: the factor or the original length is not a positive number.
    """
    if _read_rope_type(config) not in _SCALED_ROPES:
        return None
    rope = _read_rope(config)
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    if factor is None or original is None:
        return None
    if not all(isinstance(number, int | float) and 0 < number < math.inf for number in (factor, original)):
        raise StartError(
            f"config.json: rope scaling: factor {factor!r} of {original!r} positions is not a length; both must be "
            "positive numbers"
        )
    return int(factor * original)


def check_ropes(ropes: Mapping[str, Any] | None, where: object) -> None:
    """Refuse rotary positions whose frequencies depend on the other sequences of a row.

    Args:
        ropes: `rope_parameters` as transformers completes them, or as `config.json` has them: one mapping, or one for
            each type of layer (Gemma 3, ModernBERT).
        where: name of the checkpoint in errors.

    Raises:
        StartError: a type is not served.
    """
    several = [rope for rope in (ropes or {}).values() if isinstance(rope, Mapping)]
    # The limit of `longrope` is read from one mapping only.
    served = _ROPE_TYPES - {"longrope"} if several else _ROPE_TYPES
    for rope in several or [ropes or {}]:
        kind = str(rope.get("rope_type") or rope.get("type") or "default")
        if kind not in served | {_OLD_LONGROPE}:
            raise StartError(
                f"{where}: rope_type {kind!r} is not served; use a checkpoint with one of {', '.join(sorted(served))}"
                + (
                    ". Or remove this scaling from a copy of config.json, which gives the same scores up to "
                    "max_position_embeddings tokens"
                    if kind == "dynamic"
                    else ""
                )
            )


def _read_rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the scaling of rotary positions, under either of its names; empty if there is none."""
    rope: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return rope


def _read_rope_type(config: Mapping[str, Any]) -> str | None:
    """Return the type of the scaling under its present name; None if there is no scaling."""
    rope = _read_rope(config)
    kind = rope.get("rope_type", rope.get("type"))
    # transformers reads `yarn` as `longrope` in Phi-3.
    return "longrope" if kind == _OLD_LONGROPE or (kind == "yarn" and config.get("model_type") == "phi3") else kind


def count_token_types(config: Mapping[str, Any]) -> int:
    """Return the number of token types (segments) that a base distinguishes; 1 if every token has type 0."""
    architecture = ARCHITECTURES.get(config.get("model_type", ""))
    if architecture is None or architecture.type_vocab_size is None:
        return 1
    declared = config.get("type_vocab_size")
    return max(1, architecture.type_vocab_size if declared is None else declared)


def read_activation(config: Mapping[str, Any]) -> str:
    """Return the name of the activation after a classifier's dense layer, as transformers spells it."""
    keys = {"deberta-v2": "pooler_hidden_act", "modernbert": "classifier_activation"}
    key = keys.get(config.get("model_type", ""))
    return "tanh" if key is None else str(config.get(key) or "gelu")


def find_pooler(config: Mapping[str, Any]) -> Literal["pooler", "mean_pooler"]:
    """Return whether a classifier with a dense layer reads the first token or the mean of all tokens (ModernBERT)."""
    is_mean = config.get("model_type") == "modernbert" and config.get("classifier_pooling") == "mean"
    return "mean_pooler" if is_mean else "pooler"
