"""Read a conversation back from the token ids of a prompt and its completion."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from assay_service.errors import ContentError
from assay_service.scoring.item import Item
from assay_service.scoring.transcript import Transcript

_ABOVE_IDS = 2**32  # tokenizers keeps ids in 32 bits


class TokenReader:
    """A reader of token ids, which decodes them with their special tokens and reads the text.

    Args:
        source: key of the configuration that names the tokenizer, such as "signals.preference".
        sha256: SHA-256 of the bytes of `tokenizer.json`.
        tokenizer: tokenizer that gave the ids.
        transcript: reader of the conversations that the template beside the tokenizer renders.
    """

    def __init__(self, source: str, sha256: str, tokenizer: PreTrainedTokenizerBase, transcript: Transcript) -> None:
        self.source = source
        self.sha256 = sha256
        self.transcript = transcript
        self._encoder = tokenizer.backend_tokenizer

    def read(self, prompt: Sequence[int], completion: Sequence[int]) -> Item:
        """Return the conversation of a prompt, which ends with the generation prompt, and its completion.

        The completion is finished if its last id, apart from pads, is an EOS or the template's end of turn.

        Raises:
            ContentError: an id is not in the vocabulary (`token_out_of_range`), or the text cannot be read, as for
                `Transcript.read_pair`.
        """
        return self.transcript.read_pair(*self.decode_pair(prompt, completion))

    def decode_pair(self, prompt: Sequence[int], completion: Sequence[int]) -> tuple[str, str]:
        """Return the texts of a prompt and its completion, special tokens included.

        Raises:
            ContentError: as for `decode`, or the text of the prompt depends on what follows (`unreadable_text`).
        """
        self._check(prompt, "prompt_ids")
        self._check(completion, "completion_ids")
        # Some decoders drop the space at the start of a text, so the completion is decoded behind its prompt.
        start, whole = self._decode(prompt), self._decode([*prompt, *completion])
        if not whole.startswith(start):
            raise ContentError(
                "the text of prompt_ids changes when completion_ids follow; send both as text", code="unreadable_text"
            )
        return start, whole[len(start) :]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included.

        Raises:
            ContentError: an id is not in the vocabulary, so its text would be lost; the code is `token_out_of_range`.
                Or the ids end within a character; the code is `unreadable_text`.
        """
        self._check(ids, None)
        return self._decode(ids)

    def _check(self, ids: Sequence[int], name: str | None) -> None:
        unknown = next((token for token in set(ids) if not self._has(token)), None)
        if unknown is not None:
            raise ContentError(
                f"{name or 'the list'} holds the id {unknown}, which the tokenizer does not have",
                code="token_out_of_range",
                param=name,
            )

    def _has(self, token: int) -> bool:
        return token < _ABOVE_IDS and self._encoder.id_to_token(token) is not None

    def _decode(self, ids: Sequence[int]) -> str:
        text = str(self._encoder.decode(list(ids), skip_special_tokens=False))
        # Decoders write U+FFFD for the bytes of a part of a character; a character U+FFFD gives the same ids again.
        if "\ufffd" in text and self._encoder.encode(text, add_special_tokens=False).ids != list(ids):
            raise ContentError("the ids begin or end within a character; send text", code="unreadable_text")
        return text
