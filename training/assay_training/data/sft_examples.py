"""Dialogues and texts as ids, with a mark on every token that a policy learns to say."""

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
    """What a policy learns from.

    Attributes:
        ids: the whole conversation or text.
        target_mask: True where a token counts in the loss; never the first.
    """

    ids: tuple[int, ...]
    target_mask: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.target_mask) != len(self.ids) or self.target_mask[0] or not any(self.target_mask):
            raise ValueError("the target mask must be as long as the ids, leave out the first token and mark another")

    @classmethod
    def of(cls, prompt: tuple[int, ...], completion: tuple[int, ...]) -> "SftExample":
        """The completion's tokens count, the prompt's do not."""
        return cls(prompt + completion, (False,) * len(prompt) + (True,) * len(completion))

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self.ids)

    @property
    def targets(self) -> int:
        """How many count."""
        return sum(self.target_mask)


@dataclass(slots=True)
class SftReport:
    """What happened to the records on their way to ids.

    Attributes:
        cut: examples that were cut on the right.
        empty: records of which no target token was left.
        refused: records that the renderer refused, by error code; they are dropped.
    """

    cut: int = 0
    empty: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def lost(self) -> dict[str, int]:
        """The records that nothing is learned from, by reason."""
        return {**self.refused, **({"no reply within max_length": self.empty} if self.empty else {})}


class SftRenderer:
    """Turns records into examples of at most `max_length` tokens.

    Args:
        renderer: of the policy's template; without a length limit of its own.
        tokenizer: of the policy.
        max_length: what is longer is cut on the right.
    """

    def __init__(self, renderer: Renderer, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._renderer, self._tokenizer, self._max_length = renderer, tokenizer, max_length

    def examples(self, records: Sequence[Spoken]) -> tuple[list[SftExample], SftReport]:
        """The examples in order, with a count of what was cut, empty or refused."""
        report, made = SftReport(), []
        for record in tqdm(records, desc="render", unit="records", mininterval=10):
            try:
                ids, mask = self._text(record) if isinstance(record, Text) else self._dialogue(record)
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

    def _text(self, record: Text) -> tuple[tuple[int, ...], list[bool]]:
        """All tokens but the first, and the end of the text."""
        ids = self._tokenizer.encode(record.text, add_special_tokens=False)
        if set(ids) & set(self._tokenizer.all_special_ids):
            raise ContentError("a text tokenises to a control token", code="special_tokens")
        ids = [*([] if self._tokenizer.bos_token_id is None else [self._tokenizer.bos_token_id]), *ids]
        ids = [*ids, self._tokenizer.eos_token_id]
        return tuple(ids), [False, *(True for _ in ids[1:])]

    def _dialogue(self, record: Dialogue) -> tuple[tuple[int, ...], list[bool]]:
        """What the assistant says in every turn, up to and including its first EOS ([CRS] section 5.2)."""
        spans = []
        ids: tuple[int, ...] = ()
        for number, message in enumerate(record.messages):
            if message.role != "assistant":
                continue
            rendered = self._renderer.render(Item(record.messages[: number + 1]))
            if rendered.sequence.ids[: len(ids)] != ids:
                raise ContentError("the template renders earlier turns otherwise later on", code="template_not_stable")
            ids = rendered.sequence.ids
            spans.append((rendered.boundary, self._end(ids, rendered.boundary)))
        mask = [False] * len(ids)
        for start, end in spans:
            mask[max(start, 1) : end] = [True] * (end - max(start, 1))
        return ids, mask

    def _end(self, ids: tuple[int, ...], boundary: int) -> int:
        """After the first EOS of a completion; the template may print more, which nobody has to learn.

        Raises:
            ContentError: there is none; the policy would learn to go on where it should stop.
        """
        eos = self._tokenizer.eos_token_id
        end = next((i + 1 for i in range(boundary, len(ids)) if ids[i] == eos), None)
        if end is None:
            raise ContentError("the template prints no EOS after a turn of the assistant", code="no_end_of_turn")
        return end
