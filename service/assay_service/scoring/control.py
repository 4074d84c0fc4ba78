"""Find a tokenizer's control tokens in texts, and encode texts in which they are plain characters."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from assay_service.errors import ContentError, StartError
from assay_service.scoring.item import Item, Message
from assay_service.scoring.manifest import ControlTokenPolicy
from assay_service.scoring.pieces import EncodedPieces, encode_pieces

# Unicode noncharacters, which texts do not contain on purpose. They enclose the other spelling of the template's own
# control tokens, and the control tokens in messages.
_OWN, _QUOTED = ("\ufdd0", "\ufdd1"), ("\ufdd2", "\ufdd3")
_RESERVED = re.compile("[\ufdd0-\ufdd3]")


@dataclass(frozen=True, slots=True)
class ControlRules:
    """The tokens that only a template may print, and what happens to those in messages.

    Attributes:
        texts: texts of the tokens.
        ids: ids of the tokens that must be the same as in a neutral text.
        policy: "error" refuses a control token in a message, "text" reads it as plain characters.
    """

    texts: frozenset[str]
    ids: frozenset[int]
    policy: ControlTokenPolicy


class ControlTokens:
    """The control tokens of a tokenizer, with the replacements that hide them from templates and tokenizers.

    Args:
        texts: texts of the control tokens.
    """

    def __init__(self, texts: frozenset[str]) -> None:
        self.texts = texts
        # The longest first, because a pattern takes the first alternative that matches.
        self._texts = sorted(texts, key=lambda text: (-len(text), text))
        # Without any control token the pattern matches nothing.
        self._pattern = re.compile("|".join(map(re.escape, self._texts)) or "(?!)")
        self._number = {text: number for number, text in enumerate(self._texts)}

    def find_first(self, text: str) -> str | None:
        """Return the first control token in `text`, or None."""
        match = self._pattern.search(text)
        return None if match is None else match.group()

    def quote(self, item: Item) -> Item:
        """Return `item` with every control token of its texts replaced by characters that no template knows.

        Raises:
            ContentError: a text holds one of these characters; the code is `special_tokens`.
        """
        return replace(item, messages=tuple(map(self._quote_message, item.messages)))

    def unquote(self, text: str) -> str:
        """Return a rendered text with the control tokens of its messages as they were."""
        return re.sub(f"{_QUOTED[0]}([0-9]+){_QUOTED[1]}", lambda match: self._texts[int(match[1])], text)

    def respell(self, text: str) -> str:
        """Return a rendered text with the template's own control tokens in their other spelling."""
        return self._pattern.sub(lambda match: self.respell_token(match.group()), text)

    def respell_token(self, token: str) -> str:
        """Return the other spelling of a control token, which no text contains."""
        return f"{_OWN[0]}{self._number[token]}{_OWN[1]}"

    def _quote_message(self, message: Message) -> Message:
        return message.replace_texts(self._quote_text(text) for _, text in message.texts())

    def _quote_text(self, text: str) -> str:
        if _RESERVED.search(text):
            raise ContentError(
                "a message holds a control token and a character of U+FDD0 to U+FDD3; remove that character",
                code="special_tokens",
            )
        return self._pattern.sub(lambda match: f"{_QUOTED[0]}{self._number[match.group()]}{_QUOTED[1]}", text)


class PlainEncoder:
    """An encoder of rendered texts in which only the template's own control tokens are control tokens.

    It is the same tokenizer with its control tokens under another spelling, which no text contains. Normalizer,
    pre-tokenizer and model see one text that is split at the same places, so the borders between words are as always.

    Args:
        encoder: the tokenizer.
        tokens: its control tokens.

    Raises:
        StartError: the tokenizer cannot be changed in this way.
    """

    def __init__(self, encoder: Tokenizer, tokens: ControlTokens) -> None:
        self._tokens = tokens
        state = json.loads(encoder.to_str())
        state["post_processor"] = None  # it refers to control tokens by their old spelling, and is not used here
        known = {token["content"]: token["id"] for token in state["added_tokens"]}
        for token in state["added_tokens"]:
            if token["content"] in tokens.texts:
                token["content"] = self._tokens.respell_token(token["content"])
        self._encoder = Tokenizer.from_str(json.dumps(state))
        self._encoder.no_truncation()
        self._encoder.no_padding()
        # Loading gives new ids to the respelled tokens, and perhaps to those after them; they are mapped back.
        self._ids = {
            self._encoder.token_to_id(self._tokens.respell_token(text) if text in tokens.texts else text): number
            for text, number in known.items()
        }
        clash = self._ids.keys() & set(encoder.get_vocab(with_added_tokens=False).values()) - set(known.values())
        if clash or not known.keys() >= tokens.texts:
            raise StartError("control_tokens: this tokenizer cannot read them as text; declare `control_tokens: error`")

    def encode_pieces(self, pieces: Sequence[str], *, apart: bool) -> EncodedPieces:
        """Return the ids of consecutive pieces of a text that was rendered from a quoted item."""
        spelled = [self._tokens.unquote(self._tokens.respell(piece)) for piece in pieces]
        encoded = encode_pieces(self._encoder, spelled, apart=apart)
        return replace(encoded, ids=tuple(self._ids.get(token, token) for token in encoded.ids))
