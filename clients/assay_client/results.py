"""Define the results of ranking, comparing, rendering and listing, as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from assay_client.provenance import LengthPenalty, Provenance
from assay_client.types import Score, ScoreFailure, SignalValue


@dataclass(frozen=True, slots=True)
class RankedCompletion(Score):
    """A scored completion of a ranking; `margin` is its score minus that of the next rank, None for the last."""

    margin: float | None


@dataclass(frozen=True, slots=True)
class RankResult:
    """A ranking of completions of one prompt.

    Attributes:
        results: the scored completions, best first; at most `top_n`.
        errors: the completions without a score, which have no rank.
        model: the signal or blend that they were ranked by; None if weights were sent.
        provenance: the models and files that decided the scores.
    """

    results: tuple[RankedCompletion, ...]
    errors: tuple[ScoreFailure, ...]
    model: str | None
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class SignalComparison:
    """The comparison of two completions under one signal.

    Attributes:
        margin: logit(a) − logit(b).
        prob_a: the probability that `a` is preferred, for signals of kind "preference"; otherwise None.
        a: the signal's value of the first completion.
        b: the signal's value of the second completion.
    """

    margin: float
    prob_a: float | None
    a: SignalValue
    b: SignalValue


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of two completions of one prompt.

    Attributes:
        signals: the comparison under each signal, by name.
        blends: score(a) − score(b) under each blend, by name; a length penalty is part of the scores.
        provenance: the models and files that decided the scores; it has no blend.
        length_penalties: the length penalty of each blend that has one, by name.
    """

    signals: Mapping[str, SignalComparison]
    blends: Mapping[str, float]
    provenance: Provenance
    length_penalties: Mapping[str, LengthPenalty] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A signal or blend that is served; `details` is the server's complete description of it."""

    id: str
    kind: str
    details: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RenderedStep:
    """A step of a completion: its number from 0, the index of the token that is read for it, and its text."""

    index: int
    token: int
    text: str


@dataclass(frozen=True, slots=True)
class RenderedSignal:
    """One item as one signal reads it.

    Attributes:
        text: the conversation as the signal's template prints it.
        ids: the token ids that the model reads.
        boundary: the index of the completion's first token in `ids`.
        score_policy: the rule that names the tokens whose hidden states give the score, as the signal declares it.
        score_start: the first index in `ids` that the score is read from.
        score_end: the index after the last one; with steps only some of the tokens between are read.
        truncated_tokens: the number of tokens that were cut from the left of the prompt.
        dropped_tokens: the number of tokens of the messages that the template does not print.
        control_tokens_as_text: the number of control tokens in the messages that were read as plain characters.
        steps: the finished steps; None unless the signal scores steps.
        gate: the index of the token that the head's gating network reads; None unless it reads one of the prompt.
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
    steps: tuple[RenderedStep, ...] | None = None
    gate: int | None = None


@dataclass(frozen=True, slots=True)
class RenderedItem:
    """One item as every signal reads it; `index` is its position in the caller's list."""

    index: int
    id: str | None
    signals: Mapping[str, RenderedSignal]


@dataclass(frozen=True, slots=True)
class RenderResult:
    """The result of `render`: `data[i]` is about item i."""

    data: tuple[RenderedItem | ScoreFailure, ...]
