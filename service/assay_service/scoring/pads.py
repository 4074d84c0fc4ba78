"""Find the pad token with which a head was trained in the files of base and adapter, without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay_service.errors import StartError
from assay_service.scoring.files import TOKENIZER_FILE, find_tokenizer_directory, read_json
from assay_service.scoring.special_tokens import read_special_tokens


@dataclass(frozen=True, slots=True)
class Pads:
    """The pad tokens that the files of a checkpoint name.

    Trainers set the classifier's `pad_token_id` to their tokenizer's pad. A saved model has it in `config.json`. A
    saved adapter has no `config.json`, so the files of its tokenizer are the only record.

    Attributes:
        config: `pad_token_id` of the base's `config.json`.
        base: directory of the base.
        adapters: directories of the adapters in the order in which they are applied; empty for a whole model. The last
            adapter whose tokenizer names a pad is used, because a reward is trained with the tokenizer that it finds.
    """

    config: int | None
    base: Path
    adapters: tuple[Path, ...]

    @property
    def known(self) -> bool:
        """Return whether the classifier has a pad token.

        For a whole model `config.json` decides. For an adapter any record counts.

        Raises:
            StartError: a tokenizer's pad token is not in its vocabulary.
        """
        # The tokenizer of a whole model may name a pad that its trainer never used.
        return self.config is not None or (bool(self.adapters) and self._find_in_tokenizers() is not None)

    def agreed(self) -> int | None:
        """Return the pad token id with which the head was trained; None if no file names one.

        Raises:
            StartError: the base's `config.json` and the adapter's tokenizer name different ones.
        """
        named = self._find_in_adapters()
        if named is not None and self.config is not None and named[0] != self.config:
            raise StartError(
                f"pad_token_id: declare it, because the base's config.json says {self.config} "
                f"({find_token_text(self.base, self.config)!r}) and the adapter's tokenizer {named[0]} ({named[1]!r}). "
                "TRL trains with the pad of the tokenizer, transformers' Trainer with that of config.json"
            )
        return self._find_in_tokenizers() if self.config is None else self.config

    def _find_in_adapters(self) -> tuple[int, str] | None:
        """Return id and text of the pad token that the last adapter with one names."""
        # A later adapter may come without a tokenizer; its vocabulary is then that of the adapters before it.
        for number in reversed(range(len(self.adapters))):
            if "pad_token" in read_special_tokens(self.adapters[number]).named:
                return pad_token(
                    self.adapters[number], find_tokenizer_directory(self.base, *self.adapters[: number + 1])
                )
        return None

    def _find_in_tokenizers(self) -> int | None:
        """Return the id of the pad token that the adapters' tokenizers or the base's name."""
        named = self._find_in_adapters() or pad_token(self.base, self.base)
        return None if named is None else named[0]


def pad_token(directory: Path, vocabulary: Path) -> tuple[int, str] | None:
    """Return id and text of the pad token that a tokenizer's own files name; None if they name none.

    Args:
        directory: directory with `tokenizer_config.json` or `special_tokens_map.json`.
        vocabulary: directory with the `tokenizer.json` in which the token is looked up.

    Raises:
        StartError: the token is not in the vocabulary.
    """
    token, path = read_special_tokens(directory).named.get("pad_token"), vocabulary / TOKENIZER_FILE
    if token is None or not path.is_file():
        return None
    token_id = _find_token_id(_read_tokenizer(vocabulary), token)
    if token_id is None:
        raise StartError(
            f"{directory}: its tokenizer's pad_token {token!r} is not in {path}; declare the `pad_token_id` that the "
            "head was trained with"
        )
    return token_id, token


def find_token_text(vocabulary: Path, token_id: int) -> str | None:
    """Return the text of a token in a `tokenizer.json`; None if the file or the token does not exist."""
    tokenizer = _read_tokenizer(vocabulary) if (vocabulary / TOKENIZER_FILE).is_file() else {}
    texts = {entry["id"]: entry["content"] for entry in tokenizer.get("added_tokens", [])}
    if token_id not in texts:
        texts = {number: text for text, number in _read_vocabulary(tokenizer).items()}
    return texts.get(token_id)


def _read_tokenizer(directory: Path) -> dict[str, Any]:
    """Return the content of a `tokenizer.json`.

    Raises:
        StartError: the file does not describe a tokenizer.
    """
    path = directory / "tokenizer.json"
    tokenizer = read_json(path)
    added, model = tokenizer.get("added_tokens", []), tokenizer.get("model", {})
    entries = isinstance(added, list) and all(
        isinstance(token, dict) and {"id", "content"} <= token.keys() for token in added
    )
    if not entries or not isinstance(model, dict):
        raise StartError(
            f"{path}: does not describe a tokenizer: `added_tokens` or `model` is malformed; download or save it again"
        )
    return tokenizer


def _find_token_id(tokenizer: dict[str, Any], token: str) -> int | None:
    """Return the id of a token's text; None if the tokenizer does not have it."""
    # Added tokens come first, as in the tokenizers library: their ids override those of the model's vocabulary.
    for entry in tokenizer.get("added_tokens", []):
        if entry["content"] == token:
            return int(entry["id"])
    return _read_vocabulary(tokenizer).get(token)


def _read_vocabulary(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Return ids keyed by text: most models map texts to ids, Unigram lists texts with their scores."""
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):
        return {text: number for number, (text, _) in enumerate(vocabulary)}
    return dict(vocabulary)
