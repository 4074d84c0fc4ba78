"""Build the parts of answers from scores: rows, values of signals, and provenance.

The endpoints omit fields that were never set, so these functions set a field only where it has a meaning.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from assay_service.api.answers import ErrorDetail, FailedRow, ProvenanceInfo, ScoredRow, SignalValue
from assay_service.api.scorer import ItemScore
from assay_service.api.scoring import ScoredItem
from assay_service.errors import AssayError
from assay_service.registry import Registry, Signal
from assay_service.scoring.blend import Blend, LengthPenalty, compute_probability


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


def describe_fidelity(signal: Signal) -> dict[str, Any] | str:
    """Return what was measured of a signal's numbers against others; "reference" for float32 where nothing was."""
    if signal.fidelity is not None:
        return signal.fidelity.model_dump()
    return "reference" if signal.provenance.compute == "float32" else "not measured"
