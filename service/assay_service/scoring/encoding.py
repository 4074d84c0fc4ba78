"""Turn an item into ids by a template and a tokenizer, and find where the completion begins.

The whole text is tokenized once, without adding special tokens, unless its template marks borders of pieces
(`borders.py`). The boundary is the length of the longest common prefix, in ids, with the tokenized generation prompt. A
token that merges across the border belongs to the completion.
"""

import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from assay_service.errors import ContentError
from assay_service.scoring.borders import Borders, Pieces
from assay_service.scoring.control import ControlRules, ControlTokens, PlainEncoder
from assay_service.scoring.item import Item, Message
from assay_service.scoring.manifest import StepRules
from assay_service.scoring.pieces import EncodedPieces, encode_pieces
from assay_service.scoring.steps import PlacedSteps, divide, place_steps
from assay_service.scoring.template import RenderedText, Template

# Encoded items in memory: signals that read text in the same way render an item one after the other.
_KEPT_ITEMS = 2
_KEPT = 16  # tokenized texts in memory; items share their prompt and their skeleton
# Conversations in which a template prints the tokens that open and close turns; each must end with the assistant.
_TURNS = (
    ("user", "assistant", "user", "assistant"),
    ("system", "user", "assistant"),
    ("user", "assistant", "tool", "assistant"),
    ("user", "assistant"),
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An item as token ids.

    Attributes:
        text: texts that the template printed.
        ids: token ids of the whole text.
        prompt: token ids of the prompt's text alone.
        boundary: length of the common prefix of `ids` and `prompt`.
        control_tokens_as_text: number of control tokens in the messages that were read as plain characters.
        placed: places of the steps; None unless steps are scored.
        reads: index of the token that is read for each finished step; empty unless steps are scored.
        steps: texts of these steps.
    """

    text: RenderedText
    ids: tuple[int, ...]
    prompt: tuple[int, ...]
    boundary: int
    control_tokens_as_text: int
    placed: PlacedSteps | None = None
    reads: tuple[int, ...] = ()
    steps: tuple[str, ...] = ()

    def cut_last_step(self, placed: PlacedSteps) -> "Encoded":
        """Return the item up to the end of the text of its last step, without the step token after it."""
        text = replace(self.text, full=self.text.full[: len(self.text.full) - placed.tail])
        ids = self.ids[: placed.end]
        return replace(self, text=text, ids=ids, boundary=min(self.boundary, len(ids)))


class ItemEncoder:
    """An encoder of items.

    It is not safe for concurrent use, because the settings of the tokenizer are shared.

    Args:
        template: template that prints the text.
        encoder: tokenizer without truncation and padding.
        control: tokens that only the template may print.
        steps: rules by which steps are read; None if they are not.
        max_length: largest number of tokens, by which the number of steps is limited.
        borders: reader of the borders that the template marks between pieces, each of which is encoded by itself; None
            for a template that marks none.

    Raises:
        StartError: the policy does not work with this tokenizer.
    """

    def __init__(
        self,
        template: Template,
        encoder: Tokenizer,
        control: ControlRules,
        steps: StepRules | None = None,
        max_length: int = 0,
        borders: Borders | None = None,
    ) -> None:
        self._template = template
        self._borders = borders
        self._encoder = encoder
        # Completions of one prompt come one after the other, and conversations of one form have one skeleton.
        self._encode_kept = functools.lru_cache(maxsize=_KEPT)(self.encode_text)
        self._encode_item = functools.lru_cache(maxsize=_KEPT_ITEMS)(self._encode_new)
        self._control = ControlTokens(control.texts)
        self._control_ids = control.ids
        self._steps = steps
        self._max_length = max_length
        self._plain = PlainEncoder(encoder, self._control) if control.policy == "text" else None

    def encode(self, item: Item) -> Encoded:
        """Return the ids of `item`.

        Raises:
            ContentError: a message holds a control token (`special_tokens`), or `Template.render` or `divide` refuses
                the item.
        """
        return self._encode_item(item)

    def _encode_new(self, item: Item) -> Encoded:
        if self._steps is None:
            return self._encode(item)
        divided = divide(item, self._steps, self._max_length)
        steps = divided.item.messages[-1].parts
        if divided.finished < len(steps) and self._steps.layout == "inline":
            self._template.render(item)  # refuses an unfinished completion whose place is not certain
        encoded = self._encode(divided.item)
        placed = encoded.placed
        assert placed is not None  # every item with steps has it
        if divided.finished < len(steps):
            encoded = encoded.cut_last_step(placed)
        return replace(encoded, reads=placed.reads[: divided.finished], steps=steps[: divided.finished])

    def _encode(self, item: Item) -> Encoded:
        """Encode an item whose completion, if steps are scored, is a list of them."""
        item = self._template.choose_arguments(item)
        for message in item.messages:
            for plain in (message.role, *message.list_links()):
                if token := self._control.find_first(plain):
                    what = "a role" if plain is message.role else "an id or name of a tool call"
                    raise ContentError(
                        f"{what} holds the control token {token!r}; send a plain one", code="special_tokens"
                    )
        control_token = self._find_control_token(item)
        if control_token is not None and self._plain is None:
            raise ContentError(
                f"a message holds the control token {control_token!r}; send plain text, since the service renders it, "
                "or declare `control_tokens: text`",
                code="special_tokens",
            )
        if control_token is None:
            # The normalizer can turn other characters of a message into a control token, so ids are compared as well.
            text = self._template.render(item)
            pieces, encode = self._divide(item, text), functools.partial(encode_pieces, self._encoder)
            ids, placed = self._tokenize(item, text.full, pieces, encode)
            if self._has_expected_control_tokens(ids, item):
                prompt = self._encode_kept(text.prompt) if pieces is None else encode(pieces.prompt, apart=True).ids
                return Encoded(text, ids, prompt, _count_common_prefix(ids, prompt), 0, placed)
        if self._plain is None:
            raise ContentError(
                "a message tokenizes to a control token; send plain text, or declare `control_tokens: text`",
                code="special_tokens",
            )
        return self._encode_as_text(item, self._plain)

    def _divide(self, item: Item, text: RenderedText) -> Pieces | None:
        """Return the pieces of a rendered item; None if its template marks no borders."""
        return None if self._borders is None else self._borders.divide(item, text)

    def _tokenize(
        self, item: Item, full: str, pieces: Pieces | None, encode: Callable[..., EncodedPieces]
    ) -> tuple[tuple[int, ...], PlacedSteps | None]:
        """Return the ids of a rendered item, and the places of its steps if steps are scored."""
        if pieces is not None:
            return encode(pieces.full, apart=True).ids, None
        if self._steps is None:
            return encode((full,), apart=False).ids, None
        encode_steps = functools.partial(encode, apart=self._steps.tokenize == "apart")
        return place_steps(item, self._template.get_skeleton(item), full, self._steps, encode_steps)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text, without adding special tokens."""
        return tuple(self._encoder.encode(text, add_special_tokens=False).ids)

    def _encode_as_text(self, item: Item, plain: PlainEncoder) -> Encoded:
        """Encode an item whose control tokens are read as plain characters."""
        quoted = self._control.quote(item)
        rendered = self._template.render(quoted)
        pieces = self._divide(quoted, rendered)
        ids, placed = self._tokenize(quoted, rendered.full, pieces, plain.encode_pieces)
        prompt = plain.encode_pieces((rendered.prompt,) if pieces is None else pieces.prompt, apart=True).ids
        if not self._has_expected_control_tokens(ids, item):
            raise ContentError(
                "a message tokenizes to a control token even as plain characters; remove it", code="special_tokens"
            )
        shown = self._control.unquote
        dropped = tuple(replace(part, text=shown(part.text)) for part in rendered.dropped)
        texts = (text for message in item.messages for _, text in message.texts())
        count = sum(len(self._select_control_ids(self.encode_text(text))) for text in texts)
        text = RenderedText(shown(rendered.prompt), shown(rendered.full), dropped)
        return Encoded(text, ids, prompt, _count_common_prefix(ids, prompt), count, placed)

    def _find_control_token(self, item: Item) -> str | None:
        """Return the first control token in the texts of an item, or None."""
        tokens = (self._control.find_first(text) for message in item.messages for _, text in message.texts())
        return next((token for token in tokens if token is not None), None)

    def _has_expected_control_tokens(self, ids: tuple[int, ...], item: Item) -> bool:
        """Return whether the control tokens are those of a neutral conversation of the same shape, in their order."""
        return self._select_control_ids(ids) == self._select_control_ids(
            self._encode_kept(self._template.render_neutral(item))
        )

    def _select_control_ids(self, ids: tuple[int, ...]) -> list[int]:
        """Return the control tokens among `ids`, in their order."""
        return [token for token in ids if token in self._control_ids]


def find_control_tokens(template: Template, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the ids of the tokens that only a template may print, keyed by their texts: special and turn tokens."""
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    special = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= {text: added[text] for text in _find_turn_tokens(template, added)}
    return special | {text: tokenizer.convert_tokens_to_ids(text) for text in tokenizer.all_special_tokens}


def find_step_token(tokenizer: PreTrainedTokenizerBase, rules: StepRules | None) -> frozenset[int]:
    """Return the id of the step token if a text of a client must not contain it.

    White space, and an answer such as "+" in turns, are text.
    """
    if rules is None or rules.layout == "turns" or not rules.token.strip():
        return frozenset()
    encoder: Any = tokenizer
    return frozenset(encoder.backend_tokenizer.encode(rules.token, add_special_tokens=False).ids[-1:])


def _find_turn_tokens(template: Template, added: Collection[str]) -> frozenset[str]:
    """Return the added tokens that a template prints around messages.

    A message that holds such a token opens or closes a turn, whether or not the tokenizer's file calls it special.
    DeepSeek-V3's `<｜User｜>` and `<｜Assistant｜>` are not marked so. Tags with a closing tag, such as `<think>`, are
    excluded, because completions contain them as well.

    Args:
        template: template that prints the conversations.
        added: texts of the tokenizer's added tokens.
    """
    printed = "".join(_render_neutral_conversations(template))
    tags = {opening for tag in added if (opening := tag.replace("/", "", 1)) != tag}
    # Gemma's vocabulary has added tokens for line breaks, which its template prints, but which are text.
    words = (token for token in added if token.strip())
    return frozenset(token for token in words if token in printed and token.replace("/", "", 1) not in tags)


def _render_neutral_conversations(template: Template) -> Iterator[str]:
    """Yield rendered conversations of many roles with neutral texts."""
    for roles in _TURNS:
        try:
            yield template.render_neutral(Item(tuple(Message(role, "") for role in roles)))
        except ContentError:  # many templates refuse some roles; an item with such a role is refused when it comes
            continue


def _count_common_prefix(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Return the length of the longest common prefix."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))
