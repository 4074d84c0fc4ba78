"""Render dialogues and texts as token ids, with a mask of the tokens that a policy is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from assay_service.errors import ContentError
from assay_service.scoring.item import Item
from assay_service.scoring.render import Renderer
from assay_training.records.record import Dialogue, Spoken, Text


@dataclass(frozen=True, slots=True)
class SftExample:
    """A training example of a policy.

    Attributes:
        ids: token ids of the whole conversation or text, T of them.
        target_mask: mask of the T tokens, True where a token counts in the loss; False for the first token.

    Raises:
        ValueError: the mask has another length, includes the first token, or is empty.
    """

    ids: tuple[int, ...]
    target_mask: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.target_mask) != len(self.ids) or self.target_mask[0] or not any(self.target_mask):
            # Nothing precedes the first token, so no logits predict it.
            raise ValueError("the target mask must be as long as the ids, exclude the first token and include another")

    @classmethod
    def of(cls, prompt: tuple[int, ...], completion: tuple[int, ...]) -> "SftExample":
        """Build an example of a prompt and a completion, with the loss on the completion's tokens."""
        return cls(prompt + completion, (False,) * len(prompt) + (True,) * len(completion))

    @property
    def tokens(self) -> int:
        """Return the number of tokens."""
        return len(self.ids)

    @property
    def targets(self) -> int:
        """Return the number of tokens that count in the loss."""
        return sum(self.target_mask)


@dataclass(slots=True)
class SftReport:
    """The numbers of examples that were truncated, dropped or refused in rendering.

    Attributes:
        cut: number of examples that were truncated on the right.
        empty: number of records without a target token after truncation; they are dropped.
        refused: numbers of records that the renderer refused, by error code; they are dropped.
    """

    cut: int = 0
    empty: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def lost(self) -> dict[str, int]:
        """Return the numbers of records that nothing is learned from, by reason."""
        return {**self.refused, **({"no reply within max_length": self.empty} if self.empty else {})}


class SftRenderer:
    """The renderer of dialogues and texts into examples of at most `max_length` tokens.

    Args:
        renderer: renderer of the policy's template, without a length limit of its own.
        tokenizer: tokenizer of the policy.
        max_length: largest number of tokens; longer examples are truncated on the right.
    """

    def __init__(self, renderer: Renderer, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._renderer, self._tokenizer, self._max_length = renderer, tokenizer, max_length

    def examples(self, records: Sequence[Spoken]) -> tuple[list[SftExample], SftReport]:
        """Render the records as examples, in order, and count what was truncated, empty or refused."""
        report, made = SftReport(), []
        for record in tqdm(records, desc="render", unit="records", mininterval=10):
            try:
                ids, mask = self._render_text(record) if isinstance(record, Text) else self._render_dialogue(record)
            except ContentError as error:
                report.refused[error.code] = report.refused.get(error.code, 0) + 1
                continue
            report.cut += len(ids) > self._max_length
            ids, mask = ids[: self._max_length], mask[: self._max_length]
            if any(mask):
                made.append(SftExample(ids, tuple(mask)))
            else:
                report.empty += 1
        return made, report

    def _render_text(self, record: Text) -> tuple[tuple[int, ...], list[bool]]:
        """Render a text; all tokens but the first count, and so does the EOS token at the end."""
        ids = self._tokenizer.encode(record.text, add_special_tokens=False)
        if set(ids) & set(self._tokenizer.all_special_ids):
            # A written control token, such as an EOS, would teach the policy to end in the middle of a text.
            raise ContentError("a text tokenizes to a control token", code="special_tokens")
        ids = [*([] if self._tokenizer.bos_token_id is None else [self._tokenizer.bos_token_id]), *ids]
        ids = [*ids, self._tokenizer.eos_token_id]
        return tuple(ids), [False, *(True for _ in ids[1:])]

    def _render_dialogue(self, record: Dialogue) -> tuple[tuple[int, ...], list[bool]]:
        """Render a dialogue; the assistant's turns count, each up to its first EOS, inclusive ([CRS] section 5.2)."""
        spans = []
        ids: tuple[int, ...] = ()
        for number, message in enumerate(record.messages):
            if message.role != "assistant":
                continue
            rendered = self._renderer.render(Item(record.messages[: number + 1]))
            if rendered.sequence.ids[: len(ids)] != ids:
                # The mask is built turn by turn, and would be at the wrong tokens.
                raise ContentError(
                    "the template changes earlier turns when later ones follow", code="template_not_stable"
                )
            ids = rendered.sequence.ids
            spans.append((rendered.boundary, self._find_end(ids, rendered.boundary)))
        mask = [False] * len(ids)
        for start, end in spans:
            # The first token has no prediction, even where a template prints nothing before the completion.
            mask[max(start, 1) : end] = [True] * (end - max(start, 1))
        return ids, mask

    def _find_end(self, ids: tuple[int, ...], boundary: int) -> int:
        """Return the index after a completion's first EOS; what the template prints after it is not trained on.

        Raises:
            ContentError: the completion has no EOS; the policy would learn to go on where it should stop.
        """
        eos = self._tokenizer.eos_token_id
        end = next((i + 1 for i in range(boundary, len(ids)) if ids[i] == eos), None)
        if end is None:
            raise ContentError("the template prints no EOS after a turn of the assistant", code="no_end_of_turn")
        return end
