"""What ranking, comparing, rendering and listing answer, as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass

from assay_client.types import Provenance, Score, ScoreFailure, SignalValue


@dataclass(frozen=True, slots=True)
class RankedCompletion(Score):
    """A scored completion in its rank; `margin` is the distance to the next place, None for the last."""

    margin: float | None


@dataclass(frozen=True, slots=True)
class RankResult:
    """Completions of one prompt: `results` best first, at most `top_n`; `errors` have no rank."""

    results: tuple[RankedCompletion, ...]
    errors: tuple[ScoreFailure, ...]
    model: str | None
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class SignalComparison:
    """One signal's view: margin = logit(a) − logit(b); `prob_a` = P(a preferred), kind "preference" only."""

    margin: float
    prob_a: float | None
    a: SignalValue
    b: SignalValue


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two completions of one prompt: every signal's view, and score(a) − score(b) under every blend."""

    signals: Mapping[str, SignalComparison]
    blends: Mapping[str, float]
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A signal or blend that is served; `details` is all that the server says about it."""

    id: str
    kind: str
    details: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RenderedSignal:
    """What one signal reads of one item.

    Attributes:
        text: the conversation as the signal's template prints it.
        ids: the token ids that the model reads.
        boundary: index of the completion's first token in `ids`.
        score_policy: which tokens the score is read from, as the signal declares it.
        score_start: first index in `ids` that the score is read from.
        score_end: index behind the last one.
        truncated_tokens: tokens cut from the prompt's left.
        dropped_tokens: tokens that the template left out of the messages.
        control_tokens_as_text: control tokens of the messages that were read as plain characters.
    """

    text: str
    ids: tuple[int, ...]
    boundary: int
    score_policy: str
    score_start: int
    score_end: int
    truncated_tokens: int
    dropped_tokens: int
    control_tokens_as_text: int


@dataclass(frozen=True, slots=True)
class RenderedItem:
    """One item as every signal reads it; `index` is the position in the caller's list."""

    index: int
    id: str | None
    signals: Mapping[str, RenderedSignal]


@dataclass(frozen=True, slots=True)
class RenderResult:
    """Answers to `render`: `data[i]` is about item i."""

    data: tuple[RenderedItem | ScoreFailure, ...]
