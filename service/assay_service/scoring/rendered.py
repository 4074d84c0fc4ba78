"""Hold what is scored for one item and one signal."""

from dataclasses import dataclass

from assay_service.scoring.layout import TokenSequence
from assay_service.scoring.skeleton import Dropped


@dataclass(frozen=True, slots=True)
class Rendered:
    """The token sequence that is scored for one item and one signal.

    Attributes:
        text: rendered conversation before tokenising; for a truncated item, the whole of it.
        sequence: ids after truncation, the boundary and the score span.
        truncated_tokens: number of prompt tokens that were removed.
        dropped: texts of the messages that the template did not print; empty unless the rules allow it.
        dropped_tokens: number of tokens in these texts, each tokenised by itself.
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
