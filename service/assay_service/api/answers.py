"""The wire, outward: answers. No float may be NaN or infinite, so a failure cannot leave as a number."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from assay_service.scoring.blend import Standardise

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SignalValue(_Answer):
    """What one signal says of one item; `prob` for absolute signals only.

    `dropped_tokens` counts tokens of the messages that the template left out, and `control_tokens_as_text` the control
    tokens of the messages that were read as plain characters; both only where the signal declares that.
    """

    logit: Finite
    prob: Finite | None = None
    prompt_tokens: int
    completion_tokens: int
    truncated_tokens: int
    dropped_tokens: int
    control_tokens_as_text: int


class ErrorDetail(_Answer):
    """Why one item has no score; `param` is the field inside the item, null if it is the whole."""

    code: str
    message: str
    param: str | None
    retryable: bool


class ScoredRow(_Answer):
    """A scored item."""

    index: int
    id: str | None = None
    score: Finite
    signals: dict[str, SignalValue]


class FailedRow(_Answer):
    """An item without a score."""

    index: int
    id: str | None = None
    error: ErrorDetail


class BlendInfo(_Answer):
    """The rule behind the scores."""

    name: str
    weights: dict[str, Finite]
    standardise: Standardise


class SignalProvenance(_Answer):
    """Where a signal's numbers come from."""

    model: str
    revision: str
    adapter_sha256: str | None
    head_sha256: str
    template_sha256: str
    dtype: str


class ProvenanceInfo(_Answer):
    """Rule, signals and the fingerprint over all that decides a score."""

    blend: BlendInfo | None = None
    signals: dict[str, SignalProvenance]
    fingerprint: str


class ScoreAnswer(_Answer):
    """Answer of `POST /v1/score`."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoredRow | FailedRow]
    provenance: ProvenanceInfo


class RankedRow(ScoredRow):
    """A place in the ranking; `margin` is the distance to the next place, null for the last."""

    margin: Finite | None


class RankAnswer(_Answer):
    """Answer of `POST /v1/rank`."""

    id: str
    object: Literal["rank"] = "rank"
    created: int
    model: str
    results: list[RankedRow]
    errors: list[FailedRow]
    provenance: ProvenanceInfo


class ComparedSignal(_Answer):
    """Margin of a over b; `prob_a` = σ(margin) for preference signals only, where it is P(a beats b)."""

    margin: Finite
    prob_a: Finite | None = None
    a: SignalValue
    b: SignalValue


class ComparedBlend(_Answer):
    """Margin of a over b."""

    margin: Finite


class CompareAnswer(_Answer):
    """Answer of `POST /v1/compare`."""

    id: str
    object: Literal["comparison"] = "comparison"
    created: int
    signals: dict[str, ComparedSignal]
    blends: dict[str, ComparedBlend]
    provenance: ProvenanceInfo


class ScorePositionInfo(_Answer):
    """Which tokens the head reads: `[start, end)`."""

    policy: str
    start: int
    end: int


class DroppedText(_Answer):
    """A text, or a part of it, that the template left out: of the field `field` of `messages[message]`."""

    message: int
    field: str
    text: str


class RenderedSignal(_Answer):
    """What exactly one signal scores; `token_types` for bases that have more than one."""

    text: str
    ids: list[int]
    boundary: int
    score_position: ScorePositionInfo
    token_types: list[int] | None = None
    truncated_tokens: int
    dropped_tokens: int
    dropped: list[DroppedText]
    control_tokens_as_text: int


class RenderedRow(_Answer):
    """An item as every signal sees it."""

    index: int
    id: str | None = None
    signals: dict[str, RenderedSignal]


class RenderAnswer(_Answer):
    """Answer of `POST /v1/render`."""

    object: Literal["list"] = "list"
    data: list[RenderedRow | FailedRow]


class ModelInfo(_Answer):
    """A name that requests may use."""

    id: str
    object: Literal["model"] = "model"
    kind: Literal["preference", "absolute", "blend"]
    default: bool
    weights: dict[str, Finite] | None = None
    standardise: Standardise | None = None


class ModelsAnswer(_Answer):
    """Answer of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]
