"""Define what the endpoints answer, and build its parts from scores.

No float of an answer may be NaN or infinite, so that a failed computation cannot leave as a number.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from assay_service.api.scorer import ItemScore
from assay_service.api.scoring import ScoredItem
from assay_service.errors import AssayError
from assay_service.preset import GoldenState
from assay_service.registry import Registry, Signal
from assay_service.scoring.blend import Blend, LengthPenalty, Standardise, compute_probability

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Answer(BaseModel):
    """Base of all answers; a field that is not declared is an error."""

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

    `golden` says whether the preset has golden rows, and whether Assay ever recomputed them.
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


class ModelsAnswer(Answer):
    """Answer of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


# The endpoints leave out what was never set, so the functions below set a field only where it has a meaning.


def build_scored_row(
    registry: Registry, scored: ScoredItem | AssayError, *, index: int, item_id: str | None
) -> ScoredRow | FailedRow:
    """Build the row of one item: its score and the values of its signals, or its error."""
    if isinstance(scored, AssayError):
        return build_failed_row(scored, index=index, item_id=item_id)
    return ScoredRow(
        index=index, score=scored.score, signals=build_signal_values(registry, scored), **build_id(item_id)
    )


def build_signal_values(registry: Registry, scored: ScoredItem) -> dict[str, SignalValue]:
    """Build the values of all signals that scored an item, by name."""
    return {name: build_signal_value(registry.signals[name], scored.result) for name in scored.result.logits}


def build_failed_row(error: AssayError, *, index: int, item_id: str | None) -> FailedRow:
    """Build the row of an item that has an error in place of its score."""
    detail = ErrorDetail(code=error.code, message=error.message, param=error.param, retryable=error.retryable)
    return FailedRow(index=index, error=detail, **build_id(item_id))


def build_id(item_id: str | None) -> dict[str, str]:
    """Return the field `id` of a row: the id that the client sent, or no field at all."""
    return {} if item_id is None else {"id": item_id}


def build_signal_value(signal: Signal, score: ItemScore) -> SignalValue:
    """Build one signal's part of a row; only absolute signals have a probability (scoring-traps 11)."""
    rendered, logit = score.rendered[signal.name], score.logits[signal.name]
    fields: dict[str, Any] = {
        "logit": logit,
        "prompt_tokens": rendered.boundary,
        "completion_tokens": rendered.completion_tokens,
        "truncated_tokens": rendered.truncated_tokens,
        "dropped_tokens": rendered.dropped_tokens,
        "control_tokens_as_text": rendered.control_tokens_as_text,
    }
    if signal.kind == "absolute":  # of a preference signal only the sigmoid of a margin is a probability
        fields["prob"] = compute_probability(logit)
    if (std := score.readings[signal.name].std) is not None:
        fields["std"] = std
    if rendered.steps:
        fields["steps"] = _list_steps(signal, score)
    return SignalValue.model_validate(fields)


def _list_steps(signal: Signal, score: ItemScore) -> list[dict[str, float | int]]:
    """Return the fields of each step's `StepValue`."""
    logits = score.readings[signal.name].steps
    spans = score.rendered[signal.name].sequence.score_spans
    rows: list[dict[str, float | int]] = []
    for index, (span, logit) in enumerate(zip(spans, logits, strict=True)):
        prob = {"prob": compute_probability(logit)} if signal.kind == "absolute" else {}
        rows.append({"index": index, "token": span.start, "logit": logit, **prob})
    return rows


def build_provenance(registry: Registry, signals: Iterable[str], blend: Blend | None) -> ProvenanceInfo:
    """Build the provenance of an answer; without a blend the fingerprint covers all served signals."""
    fields: dict[str, object] = {
        "signals": {
            name: registry.signals[name].provenance.describe() | build_preset(registry.signals[name])
            for name in signals
        },
        "fingerprint": registry.fingerprint(blend),
    }
    if blend is not None:
        rule = {"name": blend.name, "weights": blend.weights, "standardise": blend.standardise}
        fields["blend"] = rule | build_length_penalty(blend)
    return ProvenanceInfo.model_validate(fields)


def build_preset(signal: Signal) -> dict[str, Any]:
    """Return the field `preset` of a signal, or no field at all."""
    return {} if signal.preset is None else {"preset": asdict(signal.preset)}


def build_quantization(signal: Signal) -> dict[str, str]:
    """Return the field `quantization` of a signal with quantized weights, or no field at all."""
    quantization = signal.provenance.quantization
    return {} if quantization is None else {"quantization": quantization}


def build_length_penalty(blend: Blend) -> dict[str, LengthPenalty]:
    """Return the field `length_penalty` of a blend, or no field at all."""
    penalty = blend.length_penalty
    return {} if penalty is None else {"length_penalty": penalty}
