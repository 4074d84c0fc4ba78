"""Load and write tokenizers so that their ids are those of the checkpoint's `tokenizer.json`, whatever class it names.

transformers 5 takes only the vocabulary and the merges from that file; it rebuilds the normaliser and the
pre-tokenizer from the class that `tokenizer_config.json` or the model type names. Spaces, newlines and whole scripts
can be lost that way without a warning (https://github.com/huggingface/transformers/issues/45488).
"""

import json
import logging
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from assay_service.errors import StartError
from assay_service.scoring.files import TOKENIZER_FILE, tokenizer_directory
from assay_service.scoring.special_tokens import TOKENIZER_CONFIG, SpecialTokens, read_optional, read_special_tokens

Ids = tuple[int, ...]

_LOG = logging.getLogger("assay")
TEMPLATE_FILE = "chat_template.jinja"
# What a reader of an exported checkpoint needs besides the special tokens; none of it changes ids.
_KEPT_SETTINGS = ("model_max_length", "model_input_names", "padding_side", "truncation_side")
_ACCENTS = "café naïve Ångström ñandú"
_PROBES = {
    "words": "The rapist met the therapist.",
    "upper case": "HELLO Hello hello",
    "runs of spaces": " a  b   c    d ",
    "newlines": "a\nb\n\nc \n d\r\ne",
    "tabs": "a\tb\t\tc",
    "digits": "2023 1234567 3.14",
    "punctuation": 'it\'s (a) [b] {c} "d" -- e... /*f*/ <b>g</b> http://a.b/c_d',
    "accents": unicodedata.normalize("NFC", _ACCENTS),
    "decomposed accents": unicodedata.normalize("NFD", _ACCENTS),
    "Chinese, Japanese and Korean": "你好世界。 こんにちは カタカナ 안녕하세요",
    "full-width letters": "\uff21\uff22\uff23 \uff11\uff12\uff13\uff01",
    "ligatures and symbols": "\ufb01ne \ufb02ow № ½ ™ Ⅳ ①",
    "emoji": "👍🏽 👩\u200d👩\u200d👧 🇩🇪",
}


def load(directory: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a checkpoint, with the ids of its `tokenizer.json` and its special tokens by name.

    Args:
        directory: holds `tokenizer.json`, and `tokenizer_config.json` or `special_tokens_map.json` where there are
            special tokens.

    Raises:
        StartError: a file is missing or cannot be read, or it declares special tokens that `tokenizer.json` lacks.
    """
    encoder = _from_file(directory)
    special = read_special_tokens(directory)
    _check_special(encoder, special, directory)
    names = {name: text for name, text in special.named.items() if name != "unk_token"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=encoder,
        extra_special_tokens=list(special.extra),
        model_specific_special_tokens=dict(special.models),
        **names,
    )
    # As an argument it would become a control token, which it is not in every tokenizer.json.
    tokenizer.unk_token = special.named.get("unk_token")
    check_ids(tokenizer.backend_tokenizer, encoder)  # the tokenizer has a copy
    return tokenizer


def check_ids(encoder: Tokenizer, law: Tokenizer) -> None:
    """Check that an encoder gives the ids of a `tokenizer.json` on texts of many kinds.

    Args:
        encoder: what will encode; without truncation and padding.
        law: `tokenizers.Tokenizer.from_file` of that file; without truncation and padding.

    Raises:
        StartError: naming the kinds of text whose ids differ.
    """
    wrong = [
        kind
        for kind, text in _probes(law)
        if encoder.encode(text, add_special_tokens=False).ids != law.encode(text, add_special_tokens=False).ids
    ]
    if wrong:
        raise StartError(
            f"the loaded tokenizer gives other ids than its {TOKENIZER_FILE} for {', '.join(wrong)}; "
            "transformers.PreTrainedTokenizerFast keeps the file's normaliser and pre-tokenizer"
        )


def unprinted(tokenizer: PreTrainedTokenizerFast, directory: Path, ids: Ids, boundary: int) -> tuple[str, ...]:
    """Return the special tokens that a tokenizer would put around a text by itself, and that a template does not print.

    Assay adds none: the template prints them, or the model reads none. The tokens are those of the post-processor of
    `tokenizer.json`, and those of `add_bos_token` and `add_eos_token`, by which the classes of Llama and Gemma added
    them in transformers 4.

    Args:
        tokenizer: from `load`.
        directory: where it was loaded from.
        ids: a conversation as the template prints it.
        boundary: where its completion begins.
    """
    config = read_optional(directory, TOKENIZER_CONFIG)
    encoding = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True)
    own = [index for index, special in enumerate(encoding.special_tokens_mask) if not special]
    before, after = (encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]) if own else ([], [])
    if not before and config.get("add_bos_token") is True and tokenizer.bos_token is not None:
        before = [tokenizer.bos_token_id]
    if not after and config.get("add_eos_token") is True and tokenizer.eos_token is not None:
        after = [tokenizer.eos_token_id]
    missing = [token for token, first in zip(before, ids, strict=False) if token != first]
    missing += [token for token in after if token not in ids[boundary:]]
    return tuple(tokenizer.convert_ids_to_tokens(missing))


def write(source: Path, directory: Path, template: str | None) -> None:
    """Write the tokenizer of a checkpoint into another directory, for Assay and for transformers and vLLM.

    `tokenizer.json` is copied byte for byte. The class becomes `PreTrainedTokenizerFast`, with which transformers reads
    that file as it is; flags of tokens stand in that file alone.

    Args:
        source: the checkpoint's directory, which `load` has read.
        directory: a checkpoint with its `config.json`. Where its model type makes transformers rebuild the tokenizer
            nevertheless, a warning is logged: transformers 5 does so for qwen2, whatever class is named.
        template: Jinja source of the chat template that goes with it; None writes none.
    """
    special, config = read_special_tokens(source), read_optional(source, TOKENIZER_CONFIG)
    written = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: config[name] for name in _KEPT_SETTINGS if name in config},
        "clean_up_tokenization_spaces": False,
        **special.named,
        **special.models,
        # transformers 5 reads this as `extra_special_tokens`, which is a mapping in transformers 4.
        "additional_special_tokens": list(special.extra),
    }
    shutil.copyfile(source / TOKENIZER_FILE, directory / TOKENIZER_FILE)
    (directory / TOKENIZER_CONFIG).write_text(json.dumps(written, indent=1) + "\n")
    if template is not None:
        (directory / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    misread = _misread_by_transformers(directory)
    if misread is not None:
        _LOG.warning(
            "%s: Assay reads this tokenizer as it is, but AutoTokenizer and vLLM do not, because of the model type in "
            "config.json (%s). Give them a copy of tokenizer.json, tokenizer_config.json and %s in a directory alone.",
            directory,
            misread,
            TEMPLATE_FILE,
        )


def _misread_by_transformers(directory: Path) -> str | None:
    """Return why `AutoTokenizer`, and so vLLM, reads a checkpoint with other ids; None if it gives the file's."""
    try:
        encoder = AutoTokenizer.from_pretrained(directory, local_files_only=True).backend_tokenizer
        encoder.no_truncation()
        encoder.no_padding()
        check_ids(encoder, _from_file(directory))
    except Exception as error:  # nothing that a reader of the checkpoint meets may end the run that writes it
        return str(error)
    return None


def _from_file(directory: Path) -> Tokenizer:
    """Return the tokenizer of `tokenizer.json`; without truncation and padding, which would cut or fill texts."""
    path = tokenizer_directory(directory) / TOKENIZER_FILE
    try:
        encoder = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no class of its own
        raise StartError(f"{path}: cannot be read: {error}") from None
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def _probes(encoder: Tokenizer) -> Iterator[tuple[str, str]]:
    """Yield texts with the kind of each: plain ones, and every control token beside spaces and text."""
    yield from _PROBES.items()
    tokens = [token.content for _, token in sorted(encoder.get_added_tokens_decoder().items())]
    yield "a space after a control token", "".join(f"{token} a" for token in tokens)
    yield "text after a control token", "".join(f"{token}a" for token in tokens)
    yield "a newline after a control token", "".join(f"{token}\na" for token in tokens)
    yield "a space before a control token", "".join(f"a {token}" for token in tokens)


def _check_special(encoder: Tokenizer, special: SpecialTokens, directory: Path) -> None:
    """Refuse tokens that the file alone would split like text, or to which it gives another id."""
    path = directory / TOKENIZER_FILE
    added = {token.content: number for number, token in encoder.get_added_tokens_decoder().items()}
    missing = sorted(special.texts() - set(added))
    unknown = special.named.get("unk_token")
    if unknown is not None and encoder.token_to_id(unknown) is None:
        missing = [unknown, *missing]
    if missing:
        raise StartError(
            f"{path}: has no added token {missing[0]!r}, which the files beside it declare ({len(missing)} missing), "
            "so that it would be split like text; write it in with transformers.PreTrainedTokenizerFast."
            "from_pretrained(DIR).save_pretrained(DIR) and check its id, or remove it from tokenizer_config.json, "
            "special_tokens_map.json and added_tokens.json"
        )
    for text, number in special.ids.items():
        if encoder.token_to_id(text) != number:
            raise StartError(
                f"{path}: gives {text!r} the id {encoder.token_to_id(text)}, but the files beside it say {number}; "
                "they are of different tokenizers: take all of them from one checkpoint"
            )
