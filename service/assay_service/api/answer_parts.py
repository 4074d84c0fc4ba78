"""Build the parts of answers from scores: rows, values of signals, and provenance.

Rows are dictionaries with the fields of the models in `answers.py`, which a test compares. A model of each item would
take most of the time of an answer. The endpoints omit fields that were never set, so these functions set a field only
where it has a meaning. No float of an answer may be NaN or infinite.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
from fastapi import Response

from assay_service.api.answers import ProvenanceInfo
from assay_service.api.scorer import ItemScore
from assay_service.api.scoring import ScoredItem
from assay_service.errors import AssayError, NotFinite
from assay_service.registry import Registry, Signal
from assay_service.scoring.blend import Blend, LengthPenalty, compute_probability

_MOST_WRITTEN = 256  # weights of requests make blends of their own

_encode = msgspec.json.Encoder().encode


class ProvenanceWriter:
    """A writer of the provenance of scores as JSON, which keeps what it wrote for the last blends of each registry."""

    def __init__(self) -> None:
        # Weak, so that it does not hold the models of removed signals.
        self._written: WeakKeyDictionary[Registry, OrderedDict[str, msgspec.Raw]] = WeakKeyDictionary()

    def write(self, registry: Registry, blend: Blend) -> msgspec.Raw:
        """Return the provenance of an answer with scores of a blend."""
        of_blends = self._written.setdefault(registry, OrderedDict())
        key = repr(blend)  # as the answer shows it: with the order of the weights, and with 0.0 apart from -0.0
        if key not in of_blends:
            model = build_provenance(registry, blend.weights, blend)
            of_blends[key] = msgspec.Raw(model.model_dump_json(exclude_unset=True).encode())
            if len(of_blends) > _MOST_WRITTEN:
                of_blends.popitem(last=False)
        return of_blends[key]


def write_answer(answer: Mapping[str, object]) -> Response:
    """Return the HTTP answer with these fields."""
    return Response(_encode(answer), media_type="application/json")


def build_row(
    registry: Registry, scored: ScoredItem | AssayError, *, index: int, item_id: str | None
) -> dict[str, Any]:
    """Build the fields of a `ScoredRow` or a `FailedRow`."""
    if isinstance(scored, AssayError):
        return build_failed_row(scored, index=index, item_id=item_id)
    place: dict[str, Any] = {"index": index} if item_id is None else {"index": index, "id": item_id}
    return {**place, "score": check_finite(scored.score), "signals": build_signal_values(registry, scored)}


def build_signal_values(registry: Registry, scored: ScoredItem) -> dict[str, dict[str, Any]]:
    """Build the fields of a `SignalValue` of all signals that scored an item, by name."""
    return {name: build_signal_value(registry.signals[name], scored.result) for name in scored.result.readings}


def build_failed_row(error: AssayError, *, index: int, item_id: str | None) -> dict[str, Any]:
    """Build the fields of a `FailedRow`."""
    detail = {"code": error.code, "message": error.message, "param": error.param, "retryable": error.retryable}
    return {"index": index, **build_id(item_id), "error": detail}


def check_finite(number: float) -> float:
    """Return a number of an answer, which may be neither NaN nor infinite.

    Raises:
        NotFinite: it is; JSON would have a null in its place.
    """
    if not math.isfinite(number):
        raise NotFinite("a number of the answer is not finite, so it is not returned")
    return number


def build_id(item_id: str | None) -> dict[str, str]:
    """Return the field `id` of a row: the id that the client sent, or no field at all."""
    return {} if item_id is None else {"id": item_id}


def build_signal_value(signal: Signal, score: ItemScore) -> dict[str, Any]:
    """Build the fields of a `SignalValue`; only absolute signals have a probability (scoring-traps 11)."""
    rendered, reading = score.rendered[signal.name], score.readings[signal.name]
    fields: dict[str, Any] = {"logit": check_finite(reading.logit)}
    if signal.kind == "absolute":  # of a preference signal only the sigmoid of a margin is a probability
        fields["prob"] = compute_probability(reading.logit)
    if reading.std is not None:
        fields["std"] = check_finite(reading.std)
    prompt_tokens = rendered.sequence.boundary
    fields["prompt_tokens"] = prompt_tokens
    fields["completion_tokens"] = len(rendered.sequence.ids) - prompt_tokens
    fields["truncated_tokens"] = rendered.truncated_tokens
    fields["dropped_tokens"] = rendered.dropped_tokens
    fields["control_tokens_as_text"] = rendered.control_tokens_as_text
    if rendered.steps:
        fields["steps"] = _list_steps(signal, score)
    return fields


def _list_steps(signal: Signal, score: ItemScore) -> list[dict[str, float | int]]:
    """Return the fields of each step's `StepValue`."""
    logits = score.readings[signal.name].steps
    spans = score.rendered[signal.name].sequence.score_spans
    rows: list[dict[str, float | int]] = []
    for index, (span, logit) in enumerate(zip(spans, logits, strict=True)):
        prob = {"prob": compute_probability(logit)} if signal.kind == "absolute" else {}
        rows.append({"index": index, "token": span.start, "logit": check_finite(logit), **prob})
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
