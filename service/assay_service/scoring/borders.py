"""Divide a rendered text at the borders that its template marks, for models whose code encodes each piece by itself.

Such code joins lists of token ids, so that "?" and the line break after it never become one token. A template prints
the variable `piece_border` between two pieces. Elsewhere the variable is undefined and prints nothing.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from assay_service.errors import ContentError
from assay_service.scoring.chat_environment import TemplateRenderer
from assay_service.scoring.item import Item
from assay_service.scoring.template import ChatRenderer, RenderedText, Template

VARIABLE = "piece_border"
# A Unicode noncharacter, which texts do not contain on purpose; `control.py` has four others.
_BORDER = "\ufdd4"


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of a rendered conversation.

    Attributes:
        prompt: pieces of the prompt with the generation prompt.
        full: pieces of the whole conversation.
    """

    prompt: tuple[str, ...]
    full: tuple[str, ...]


class Borders:
    """A reader of the borders that a template prints.

    Args:
        tokenizer: tokenizer whose special tokens the template prints.
        template: Jinja source of the template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self._template = Template(_Marking(TemplateRenderer(tokenizer)), template)

    def divide(self, item: Item, text: RenderedText) -> Pieces:
        """Return the pieces of `text`, which the template printed for `item`.

        Raises:
            ContentError: a message holds the character that marks borders (`special_tokens`), or the template prints
                another text where it marks them (`template_error`).
        """
        if any(_BORDER in part for message in item.messages for _, part in message.texts()):
            raise ContentError(
                "a message holds the character U+FDD4, which marks borders of pieces; remove it", code="special_tokens"
            )
        marked = self._template.render(item)
        pieces = Pieces(tuple(marked.prompt.split(_BORDER)), tuple(marked.full.split(_BORDER)))
        if ("".join(pieces.prompt), "".join(pieces.full)) != (text.prompt, text.full):
            raise ContentError(
                f"the template prints another text where {VARIABLE} is defined; let it only print the variable",
                code="template_error",
            )
        return pieces


def find_borders(tokenizer: PreTrainedTokenizerBase, template: str) -> Borders | None:
    """Return the reader of the borders that a template prints; None for a template that marks none."""
    return Borders(tokenizer, template) if VARIABLE in template else None


class _Marking:
    """A renderer whose templates print borders."""

    def __init__(self, renderer: ChatRenderer) -> None:
        self._renderer = renderer

    def render_chat(
        self,
        conversation: list[dict[str, Any]],
        **options: Any,  # noqa: ANN401 - those of `ChatRenderer`
    ) -> str:
        """Render `conversation` to text, with a mark at every border."""
        options[VARIABLE] = _BORDER
        return self._renderer.render_chat(conversation, **options)
