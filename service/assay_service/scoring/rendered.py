"""Hold what is scored for one item and one signal."""

from dataclasses import dataclass

from tokenizers import Encoding

from assay_service.scoring.layout import TokenSequence
from assay_service.scoring.skeleton import Dropped


@dataclass(frozen=True, slots=True)
class Rendered:
    """The token sequence that is scored for one item and one signal.

    Attributes:
        text: rendered conversation before tokenizing; for a truncated item, the whole of it.
        sequence: ids after truncation, the boundary and the score span.
        truncated_tokens: number of prompt tokens that were removed.
        dropped: texts of the messages that the template did not print; empty unless the rules allow it.
        dropped_tokens: number of tokens in these texts, each tokenized by itself.
        control_tokens_as_text: number of control tokens in the messages that were read as plain characters.
        completion_cut: whether the completion was cut as well, which only training does.
        reasoning: reasoning of the completion that was removed before it was rendered.
        steps: texts of the finished steps, whose tokens are read; empty unless steps are scored.
    """

    text: str
    sequence: TokenSequence
    truncated_tokens: int
    dropped: tuple[Dropped, ...] = ()
    dropped_tokens: int = 0
    control_tokens_as_text: int = 0
    completion_cut: bool = False
    reasoning: str = ""
    steps: tuple[str, ...] = ()

    @property
    def boundary(self) -> int:
        """Return the number of prompt tokens."""
        return self.sequence.boundary

    @property
    def completion_tokens(self) -> int:
        """Return the number of tokens in the completion, its end of turn included."""
        return len(self.sequence.ids) - self.boundary

    def locate_reading(self, encoding: Encoding, lead: int) -> tuple[int, int] | None:
        """Return start and end, in characters of the text, of the tokens from the first to the last that is read.

        Args:
            encoding: the whole text as the tokenizer encodes it.
            lead: number of tokens at the front that truncation keeps.

        Returns:
            None if the ids are not those of the whole text, as for control tokens that were read as plain characters.
        """
        ids, cut = self.sequence.ids, self.truncated_tokens
        expected = encoding.ids[:lead] + encoding.ids[lead + cut :] if cut else encoding.ids
        if list(ids[: len(expected)]) != expected or len(ids) - len(expected) not in (0, 1):
            return None
        # An EOS that is appended has no characters.
        offsets = [*encoding.offsets, (len(self.text), len(self.text))]
        first, last = self.sequence.score_spans[0].start, self.sequence.score_spans[-1].end - 1
        start, end = (offsets[place if place < lead else place + cut] for place in (first, last))
        return start[0], end[1]
