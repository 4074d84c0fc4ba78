"""Build the tokenizer of a GGUF file in the files that transformers writes.

transformers' own reader passes over `tokenizer.ggml.pre`, the rule by which text is split before the merges, and gives
other ids for some texts (`findings/gguf-loses-its-pre-tokenizer.sh`). Here a rule that is not known is an error.
"""

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from assay_service.errors import StartError
from assay_service.scoring.gguf_header import GgufHeader

_TOKENS, _KINDS, _MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges"))
ARRAYS = (_TOKENS, _KINDS, _MERGES)
# Kinds of tokens in llama.cpp that are found in a text before it is split.
_CONTROL, _USER_DEFINED = 3, 4
# How text is split before the merges, by llama.cpp's name of the rule.
_SPLITS = {
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
}
# Names of special tokens in llama.cpp and in transformers.
_SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


def build_tokenizer(header: GgufHeader) -> dict[str, str]:
    """Return the content of the tokenizer's files by name.

    Args:
        header: header of the file, read with `ARRAYS`.

    Raises:
        StartError: the tokenizer is of a kind that is not read, or a part of it is missing.
    """
    ids = find_special_ids(header)
    tokens = header.arrays[_TOKENS]
    settings: dict[str, Any] = {
        # Other classes of transformers rebuild the split of the text, whatever tokenizer.json says.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": header.get_number("context_length"),
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": tokens[token] for name, token in ids.items()},
    }
    files = {
        "tokenizer.json": _build_encoder(header).to_str(),
        "tokenizer_config.json": json.dumps(settings, indent=1, ensure_ascii=False) + "\n",
    }
    template = header.metadata.get("tokenizer.chat_template")
    return files if template is None else files | {"chat_template.jinja": str(template)}


def find_special_ids(header: GgufHeader) -> dict[str, int]:
    """Return the ids of the special tokens by transformers' names: bos, eos, unk and pad, as far as there are any.

    Raises:
        StartError: a token does not exist.
    """
    ids = {}
    for key, name in _SPECIAL.items():
        token = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token is None:
            continue
        if not isinstance(token, int) or token >= len(header.arrays[_TOKENS]):
            raise StartError(
                f"{header.path.name}: tokenizer.ggml.{key}_token_id is {token}, but has no such token; use a model "
                "in transformers' format"
            )
        ids[name] = token
    return ids


def check_tokenizer(header: GgufHeader) -> None:
    """Check that the tokenizer is of the one kind that is read: byte-level merges with a known split.

    Raises:
        StartError: it is not; the message names the key.
    """

    def refuse(key: str, problem: str) -> StartError:
        return StartError(f"{header.path.name}: tokenizer.ggml.{key} {problem}; use a model in transformers' format")

    if (model := header.metadata.get("tokenizer.ggml.model")) != "gpt2":
        raise refuse("model", f"is {model!r}; of packages Assay reads 'gpt2'")
    if (split := header.metadata.get("tokenizer.ggml.pre")) not in _SPLITS:
        raise refuse("pre", f"is {split!r}; of packages Assay reads {', '.join(map(repr, _SPLITS))}")
    for key in ("add_bos_token", "add_eos_token"):
        if header.metadata.get(f"tokenizer.ggml.{key}"):
            raise refuse(key, "is true, which Assay does not read")
    for key in ARRAYS:
        if not header.arrays.get(key):
            raise refuse(key.rpartition(".")[2], "is missing")
    tokens = header.arrays[_TOKENS]
    if not len(tokens) == len(set(tokens)) == len(header.arrays[_KINDS]):
        raise refuse("tokens", "has a token twice, or another length than token_type")


def _build_encoder(header: GgufHeader) -> Tokenizer:
    """Return the tokenizer."""
    tokens = [str(token) for token in header.arrays[_TOKENS]]
    try:
        merges = [(first, second) for first, second in (str(merge).split(" ") for merge in header.arrays[_MERGES])]
        model = BPE({token: number for number, token in enumerate(tokens)}, merges)
    except Exception as error:  # a merge of other than two tokens; the library raises no narrower class
        raise StartError(f"{header.path.name}: {_MERGES}: {error}; download the file again") from error
    encoder = Tokenizer(model)
    encoder.pre_tokenizer = _SPLITS[str(header.metadata["tokenizer.ggml.pre"])]
    encoder.decoder = decoders.ByteLevel()
    kinds = header.arrays[_KINDS]
    encoder.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind == _CONTROL)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    return encoder
