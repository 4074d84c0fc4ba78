"""Group the signals that one forward pass scores: those with the same base, adapters and rendering."""

from collections.abc import Sequence
from dataclasses import dataclass

from assay_service.scoring.layout import TokenSequence
from assay_service.scoring.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class Trunk:
    """A base with its adapters, and the signals whose heads read its hidden states.

    Attributes:
        name: names of the signals, joined by "+"; the name of the signal if there is only one.
        model: model that holds the base, the adapters and the heads.
        signals: names of the signals in the model.
    """

    name: str
    model: ServedModel
    signals: tuple[str, ...]

    def compute(self, sequences: Sequence[TokenSequence]) -> list[tuple[tuple[float, ...], ...]]:
        """Return the outputs of every signal's head for each sequence, by one forward pass.

        Returns:
            For each sequence and signal, in their order, the numbers of `Head.forward`: one for each score span of the
            sequence. They may be infinite or NaN; the caller checks them.
        """
        by_signal = self.model.read(sequences, self.signals)
        return list(zip(*by_signal, strict=True))
