"""Load and write tokenizers so that their ids are those of `tokenizer.json`, whichever class the checkpoint names.

Transformers 5 takes only the vocabulary and the merges from that file. It rebuilds the normalizer and the pre-tokenizer
from the class that `tokenizer_config.json` or the model type names. Spaces, newlines and whole scripts can be lost that
way without a warning (https://github.com/huggingface/transformers/issues/45488).
"""

import hashlib
import json
import logging
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from assay_service.errors import StartError
from assay_service.scoring.files import TOKENIZER_FILE, find_tokenizer_directory
from assay_service.scoring.special_tokens import TOKENIZER_CONFIG, SpecialTokens, read_optional, read_special_tokens

Ids = tuple[int, ...]

_LOG = logging.getLogger("assay")
TEMPLATE_FILE = "chat_template.jinja"
# Settings that readers of an exported checkpoint need besides the special tokens; none of them changes ids.
_KEPT_SETTINGS = ("model_max_length", "model_input_names", "padding_side", "truncation_side")
# One text for every normalizer or pre-tokenizer step that a rebuilt tokenizer was seen to lose.
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
        directory: directory with `tokenizer.json`. Special tokens are declared in `tokenizer_config.json` or
            `special_tokens_map.json` beside it.

    Raises:
        StartError: a file is missing or cannot be read, or it declares special tokens that `tokenizer.json` lacks.
    """
    encoder = _read_encoder(directory)
    special = read_special_tokens(directory)
    _check_special(encoder, special, directory)
    names = {name: text for name, text in special.named.items() if name != "unk_token"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=encoder,
        extra_special_tokens=list(special.extra),
        model_specific_special_tokens=dict(special.models),
        **names,
    )
    # As an argument of the class it would become a control token, which not every tokenizer.json makes it.
    tokenizer.unk_token = special.named.get("unk_token")
    check_ids(tokenizer.backend_tokenizer, encoder)  # the tokenizer works on a copy, which the class may have changed
    return tokenizer


def hash_file(directory: Path) -> str:
    """Return the SHA-256 of the bytes of the `tokenizer.json` that `load` reads, as `sha256sum` prints it."""
    return hashlib.sha256((find_tokenizer_directory(directory) / TOKENIZER_FILE).read_bytes()).hexdigest()


def check_ids(encoder: Tokenizer, law: Tokenizer) -> None:
    """Check that an encoder gives the ids of a `tokenizer.json` on texts of many kinds.

    Args:
        encoder: encoder to check, without truncation and padding.
        law: reference, which is `tokenizers.Tokenizer.from_file` of that file, without truncation and padding.

    Raises:
        StartError: the ids differ; the message names the kinds of text.
    """
    wrong = [
        kind
        for kind, text in _list_probes(law)
        if encoder.encode(text, add_special_tokens=False).ids != law.encode(text, add_special_tokens=False).ids
    ]
    if wrong:
        raise StartError(
            f"the loaded tokenizer gives other ids than its {TOKENIZER_FILE} for {', '.join(wrong)}; "
            "load it with transformers.PreTrainedTokenizerFast, which keeps the file's normalizer and pre-tokenizer"
        )


def find_unprinted(tokenizer: PreTrainedTokenizerFast, directory: Path, ids: Ids, boundary: int) -> tuple[str, ...]:
    """Return the special tokens that a tokenizer would add to a text by itself but that the template does not print.

    Assay adds no special tokens: either the template prints them, or the model does not see them. The tokens are those
    of the post-processor in `tokenizer.json`. Those of `add_bos_token` and `add_eos_token` count as well, because the
    Llama and Gemma classes of transformers 4 added them.

    Args:
        tokenizer: tokenizer that `load` returned.
        directory: directory from which it was loaded.
        ids: token ids of a conversation as the template prints it.
        boundary: index of the first completion token in `ids`.
    """
    config = read_optional(directory, TOKENIZER_CONFIG)
    encoding = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True)
    # Tokens before the first and after the last token of the text "a" were added by the post-processor.
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
    that file unchanged. The flags of tokens are kept in that file alone.

    A model type can make transformers rebuild the tokenizer nevertheless. Transformers 5 does so for qwen2, whichever
    class is named. A warning is then logged.

    Args:
        source: directory of the checkpoint, which `load` has read.
        directory: checkpoint directory with its `config.json`, into which the tokenizer is written.
        template: Jinja source of the chat template that belongs to it; None writes no template.
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
    misread = _explain_misreading(directory)
    if misread is not None:
        _LOG.warning(
            "%s: Assay reads this tokenizer as it is, but AutoTokenizer and vLLM do not, because of the model type in "
            "config.json (%s). Give them a directory with copies of only tokenizer.json, tokenizer_config.json and %s.",
            directory,
            misread,
            TEMPLATE_FILE,
        )


def _explain_misreading(directory: Path) -> str | None:
    """Return why `AutoTokenizer`, and so vLLM, reads a checkpoint with other ids than its file; None if it does not."""
    try:
        encoder = AutoTokenizer.from_pretrained(directory, local_files_only=True).backend_tokenizer
        encoder.no_truncation()
        encoder.no_padding()
        check_ids(encoder, _read_encoder(directory))
    except Exception as error:  # a fault of another reader must not end the training run that writes the checkpoint
        return str(error)
    return None


def _read_encoder(directory: Path) -> Tokenizer:
    """Return the tokenizer of `tokenizer.json` without truncation and padding, which would shorten or fill texts."""
    path = find_tokenizer_directory(directory) / TOKENIZER_FILE
    try:
        encoder = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library has no exception class of its own
        raise StartError(f"{path}: cannot be read: {error}; download or save it again") from None
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def _list_probes(encoder: Tokenizer) -> Iterator[tuple[str, str]]:
    """Yield pairs of kind and text: plain texts, and every control token beside spaces and text."""
    yield from _PROBES.items()
    tokens = [token.content for _, token in sorted(encoder.get_added_tokens_decoder().items())]
    yield "a space after a control token", "".join(f"{token} a" for token in tokens)
    yield "text after a control token", "".join(f"{token}a" for token in tokens)
    yield "a newline after a control token", "".join(f"{token}\na" for token in tokens)
    yield "a space before a control token", "".join(f"a {token}" for token in tokens)


def _check_special(encoder: Tokenizer, special: SpecialTokens, directory: Path) -> None:
    """Refuse special tokens that `tokenizer.json` would split like text, or to which it gives another id."""
    path = directory / TOKENIZER_FILE
    added = {token.content: number for number, token in encoder.get_added_tokens_decoder().items()}
    missing = sorted(special.texts() - set(added))
    unknown = special.named.get("unk_token")
    if unknown is not None and encoder.token_to_id(unknown) is None:
        missing = [unknown, *missing]
    if missing:
        raise StartError(
            f"{path}: has no added token {missing[0]!r}, which the files beside it declare ({len(missing)} missing), "
            "so it would be split like text; add it with transformers.PreTrainedTokenizerFast."
            "from_pretrained(DIR).save_pretrained(DIR) and check its id, or remove it from tokenizer_config.json, "
            "special_tokens_map.json and added_tokens.json"
        )
    for text, number in special.ids.items():
        if encoder.token_to_id(text) != number:
            raise StartError(
                f"{path}: gives {text!r} the id {encoder.token_to_id(text)}, but the files beside it say {number}; "
                "they belong to different tokenizers: take all of them from one checkpoint"
            )
