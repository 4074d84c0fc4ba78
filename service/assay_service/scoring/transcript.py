"""Read a conversation back from the text that a chat template rendered."""

from transformers import PreTrainedTokenizerBase

from assay_service.scoring.item import Item
from assay_service.scoring.template import Template


class Transcript:
    """A reader of rendered conversations.

    Args:
        template: template that rendered the conversations.
        bos: text of the tokenizer's BOS token; None if it has none.
        eos: text of the tokenizer's EOS token; None if it has none.
        pad: text of the tokenizer's pad token; None if it has none.
    """

    def __init__(self, template: Template, bos: str | None, eos: str | None, pad: str | None) -> None:
        self._template = template
        self._bos, self._eos, self._pad = bos, eos, pad

    def read(self, text: str) -> Item:
        """Return the conversation of `text`, whose last turn is the completion.

        Raises:
            ContentError: the template does not give this text for any conversation; the code is `unreadable_text`.
        """
        raise NotImplementedError

    def read_pair(self, prompt: str, completion: str) -> Item:
        """Return the conversation of a rendered prompt, which ends with the generation prompt, and its completion.

        Raises:
            ContentError: as for `read`.
        """
        raise NotImplementedError


def build_transcript(template: Template, tokenizer: PreTrainedTokenizerBase) -> Transcript:
    """Return a reader of the conversations that `template` renders with the special tokens of `tokenizer`."""
    return Transcript(template, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
