"""Read the special tokens that the files beside a `tokenizer.json` declare, as transformers does, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from assay_service.scoring.files import read_config, refuse_code

TOKENIZER_CONFIG = "tokenizer_config.json"
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The special tokens that the files beside a `tokenizer.json` declare.

    Attributes:
        named: texts keyed by a name of transformers, such as `eos_token`.
        models: texts keyed by a name of the model's own, such as `image_token`.
        extra: texts without a name.
        ids: ids of all tokens that are declared with an id, keyed by text.
    """

    named: Mapping[str, str]
    models: Mapping[str, str]
    extra: tuple[str, ...]
    ids: Mapping[str, int]

    def texts(self) -> frozenset[str]:
        """Return every declared token except the unknown token, which stands for text and is never searched for."""
        every = {*self.named.values(), *self.models.values(), *self.extra, *self.ids}
        return frozenset(every) - {self.named.get("unk_token", "")}


def read_special_tokens(directory: Path) -> SpecialTokens:
    """Return the special tokens that the files in a directory declare, by transformers' order of precedence.

    `special_tokens_map.json` overrides `tokenizer_config.json`. It is not read if the latter has
    `added_tokens_decoder`.

    Raises:
        StartError: a file is not a JSON object.
    """
    config = read_optional(directory, TOKENIZER_CONFIG)
    ids = {text: int(number) for number, text in _read_texts(config.get("added_tokens_decoder") or {}).items()}
    if "added_tokens_decoder" not in config:
        config = {**config, **read_optional(directory, "special_tokens_map.json")}
        ids = read_optional(directory, "added_tokens.json")
    # transformers 5 writes the first key and transformers 4 the second; in 4 the first is a mapping by name.
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    by_name = _read_texts({name: token for name, token in config.items() if name.endswith("_token")})
    if isinstance(extra, dict):
        by_name, extra = by_name | _read_texts(extra), []
    return SpecialTokens(
        named={name: text for name, text in by_name.items() if name in _NAMES},
        models={name: text for name, text in by_name.items() if name not in _NAMES},
        extra=tuple(_read_texts(dict(enumerate(extra))).values()),
        ids=ids,
    )


def read_optional(directory: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if the file does not exist.

    Raises:
        StartError: the file is not a JSON object, or asks for remote code.
    """
    if not (directory / name).is_file():
        return {}
    content = read_config(directory, name)
    refuse_code(content, directory / name)
    return content


def _read_texts(tokens: Mapping[_Key, Any]) -> dict[_Key, str]:
    """Return the texts of tokens that are written as strings or objects; null and empty tokens are dropped."""
    texts = {key: token.get("content") if isinstance(token, dict) else token for key, token in tokens.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str) and text}
