"""Define what the endpoints answer; `answer_parts.py` builds it from scores.

No float of an answer may be NaN or infinite, so that a failed computation cannot leave as a number.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from assay_service.preset import GoldenState
from assay_service.scoring.blend import LengthPenalty, Standardise

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Answer(BaseModel):
    """Base of all answers; a field that is not declared is an error."""

    # A misspelled field would otherwise vanish from the answer without an error.
    model_config = ConfigDict(extra="forbid")


class StepValue(Answer):
    """The logit of one step; `token` is the index of the token that was read, in the ids of `/v1/render`."""

    index: int
    token: int
    logit: Finite
    prob: Finite | None = None


class SignalValue(Answer):
    """The logit of one signal for one item, and the token counts behind it; `prob` for absolute signals only.

    `std` is the standard deviation of the distribution that the head predicts, for heads that predict one.

    Signals that score steps also have `steps`, and their logit is the declared aggregate of these.

    `dropped_tokens` counts tokens of the messages that the template does not print, `control_tokens_as_text` the
    control tokens that were read as plain characters. Both are above 0 only where the signal's settings allow it.
    """

    logit: Finite
    prob: Finite | None = None
    std: Finite | None = None
    prompt_tokens: int
    completion_tokens: int
    truncated_tokens: int
    dropped_tokens: int
    control_tokens_as_text: int
    steps: list[StepValue] | None = None


class ErrorDetail(Answer):
    """The reason why one item has no score; `param` is the field inside the item, null if it is the whole item."""

    code: str
    message: str
    param: str | None
    retryable: bool


class ScoredRow(Answer):
    """A scored item."""

    index: int
    id: str | None = None
    score: Finite
    signals: dict[str, SignalValue]


class FailedRow(Answer):
    """An item without a score."""

    index: int
    id: str | None = None
    error: ErrorDetail


class BlendInfo(Answer):
    """The weighted sum by which logits became scores; `length_penalty` for blends that have one."""

    name: str
    weights: dict[str, Finite]
    standardise: Standardise
    length_penalty: LengthPenalty | None = None


class PresetInfo(Answer):
    """The preset behind a signal, and the keys to which the configuration gives another value.

    `golden` says what is known about its scores: nothing, only the ids of a conversation, or published scores, which
    Assay has recomputed or not.
    """

    name: str
    sha256: str
    golden: GoldenState
    changed: list[str]


class SignalProvenance(Answer):
    """The checkpoint, template and dtype that gave a signal's logits.

    `preset` for signals that have one, `quantization` for quantized weights.
    """

    model: str
    revision: str
    adapter_sha256: str | None
    head_sha256: str
    template_sha256: str
    dtype: str
    compute: str
    preset: PresetInfo | None = None
    quantization: str | None = None
    weights_sha256: str | None = None


class ProvenanceInfo(Answer):
    """The blend, its signals, and the fingerprint over everything that decides a score."""

    blend: BlendInfo | None = None
    signals: dict[str, SignalProvenance]
    fingerprint: str


class ScoreAnswer(Answer):
    """Answer of `POST /v1/score`."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoredRow | FailedRow]
    provenance: ProvenanceInfo


class RankedRow(ScoredRow):
    """A place in the ranking; `margin` is the distance to the next place, null for the last."""

    # Without a default: the last place has a null, and never no field.
    margin: Finite | None


class RankAnswer(Answer):
    """Answer of `POST /v1/rank`."""

    id: str
    object: Literal["rank"] = "rank"
    created: int
    model: str
    results: list[RankedRow]
    errors: list[FailedRow]
    provenance: ProvenanceInfo


class ComparedSignal(Answer):
    """The margin of `a` over `b` by one signal.

    `prob_a` = σ(margin) for preference signals only, where it is the Bradley-Terry probability that `a` beats `b`.
    """

    margin: Finite
    prob_a: Finite | None = None
    a: SignalValue
    b: SignalValue


class ComparedBlend(Answer):
    """The margin of `a` over `b` by one blend, in which the difference of their length penalties is included."""

    margin: Finite
    length_penalty: LengthPenalty | None = None


class CompareAnswer(Answer):
    """Answer of `POST /v1/compare`."""

    id: str
    object: Literal["comparison"] = "comparison"
    created: int
    signals: dict[str, ComparedSignal]
    blends: dict[str, ComparedBlend]
    provenance: ProvenanceInfo


class ModelInfo(Answer):
    """A name that requests may use."""

    id: str
    object: Literal["model"] = "model"
    kind: Literal["preference", "absolute", "blend"]
    default: bool
    weights: dict[str, Finite] | None = None
    standardise: Standardise | None = None
    length_penalty: LengthPenalty | None = None
    description: str | None = None
    preset: PresetInfo | None = None
    quantization: str | None = None


class SignalsAnswer(Answer):
    """Answer of `POST` and `DELETE /admin/signals`: the signals that are served now, and the fingerprint over them."""

    object: Literal["signals"] = "signals"
    signals: list[str]
    fingerprint: str


class ModelsAnswer(Answer):
    """Answer of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]
