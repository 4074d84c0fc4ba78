"""Check decoded answers against their requests, and turn them into values; wrong ones are refused, never repaired."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Generic, TypeAlias, TypeVar

from msgspec.structs import astuple

from assay_client import _wire as w
from assay_client import provenance as p
from assay_client import results as r
from assay_client import types as t
from assay_client.errors import FingerprintChanged, InvalidAnswer

Row: TypeAlias = Mapping[str, object]
# Structs of `_wire`, which exist only at run time. `astuple` lists their fields in the order of the dataclass.
Struct: TypeAlias = Any
T = TypeVar("T")
OutcomeT = TypeVar("OutcomeT", bound=t.Score | r.RenderedItem | t.ScoreFailure)


@dataclass(frozen=True)
class Answered(Generic[T]):
    """The value of an answer, the id of its request, and the endpoint that it came from."""

    value: T
    request_id: str
    endpoint: str


def parse_object(body: bytes) -> Row:
    """Return the JSON object of an answer without a fixed form; raise InvalidAnswer if the body is anything else."""
    return w.decode(body, w.OBJECT)


def _build_provenance(source: Struct) -> p.Provenance:
    blend = None
    if (rule := source.blend) is not None:
        blend = p.Blend(rule.name, rule.weights, rule.standardise, _build_length_penalty(rule.length_penalty))
    signals = {name: _build_signal_provenance(signal) for name, signal in source.signals.items()}
    return p.Provenance(blend, signals, source.fingerprint)


def _build_signal_provenance(source: Struct) -> p.SignalProvenance:
    preset = None if source.preset is None else p.Preset(*astuple(source.preset))
    return replace(p.SignalProvenance(*astuple(source)), preset=preset)


def _build_length_penalty(source: Struct | None) -> p.LengthPenalty | None:
    return None if source is None else p.LengthPenalty(*astuple(source))


def _build_outcomes(
    build: Callable[[Struct, int, str], T],
    rows: list[Struct],
    name: str,
    ids: Sequence[str | None],
    positions: Sequence[int],
) -> list[T | t.ScoreFailure]:
    """Return the rows under `name`, made by `build` or as failures; each must be about an item that was sent.

    Args:
        build: the function that makes a value from a row, its index in the call, and its path for messages.
        rows: the structs of the rows.
        name: the field of the answer that holds the rows.
        ids: the id of each item that was sent.
        positions: the index in the call of each item that was sent.
    """
    return [_build_outcome(build, row, ids, positions, f"{name}[{n}]") for n, row in enumerate(rows)]


def _build_outcome(
    build: Callable[[Struct, int, str], T], row: Struct, ids: Sequence[str | None], positions: Sequence[int], where: str
) -> T | t.ScoreFailure:
    if not 0 <= row.index < len(ids):
        raise InvalidAnswer(f"{where}: index {row.index} is not one of the {len(ids)} items")
    # Items are matched by index alone; an id that differs shows that the server mixed them up.
    if row.id != ids[row.index]:
        raise InvalidAnswer(f"{where}: the id of item {row.index} came back changed")
    if row.error is None:
        return build(row, positions[row.index], where)
    if row.score is not None:
        raise InvalidAnswer(f"{where}: the row has both a score and an error")
    return t.ScoreFailure(positions[row.index], row.id, t.ItemError(*astuple(row.error)))


def _check_present(row: Struct, names: Sequence[str], where: str) -> None:
    """Raise InvalidAnswer if a row without an error lacks a field, which a row with an error need not have."""
    for name in names:
        if getattr(row, name) is None:
            raise InvalidAnswer(f"{where}.{name}: expected a value, because the row has no error")


def _build_score(row: Struct, index: int, where: str) -> t.Score:
    _check_present(row, ("score", "signals"), where)
    return t.Score(index, row.id, row.score, _build_signals(row))


def _build_ranked(row: Struct, index: int, where: str) -> r.RankedCompletion:
    _check_present(row, ("score", "signals"), where)
    return r.RankedCompletion(index, row.id, row.score, _build_signals(row), row.margin)


def _build_signals(row: Struct) -> dict[str, t.SignalValue]:
    return {name: _build_signal(signal) for name, signal in row.signals.items()}


def _build_signal(signal: Struct) -> t.SignalValue:
    steps = None if signal.steps is None else tuple(t.StepValue(*astuple(step)) for step in signal.steps)
    return replace(t.SignalValue(*astuple(signal)), steps=steps)


def _sort_rows(rows: list[OutcomeT], positions: Sequence[int]) -> tuple[OutcomeT, ...]:
    """Return the rows by index; raise InvalidAnswer unless there is one for each position, which ascend."""
    rows = sorted(rows, key=lambda row: row.index)
    if [row.index for row in rows] != list(positions):
        raise InvalidAnswer(f"data: {len(rows)} rows do not match {len(positions)} items one to one")
    return tuple(rows)


def parse_score(body: bytes, ids: Sequence[str | None], positions: Sequence[int]) -> t.ScoreResult:
    """Return the scores of some items of a call, in the order of the items.

    Args:
        body: the answer's body.
        ids: the id of each item that was sent, None where it had none.
        positions: the index in the call of each item that was sent, ascending.

    Raises:
        InvalidAnswer: there is not exactly one row per item, or a row breaks the wire format.
    """
    answer = w.decode(body, w.SCORES)
    data = _sort_rows(_build_outcomes(_build_score, answer.data, "data", ids, positions), positions)
    return t.ScoreResult(data, answer.model, _build_provenance(answer.provenance))


def merge_scores(parts: Sequence[Answered[t.ScoreResult]]) -> t.ScoreResult:
    """Return the chunks of one call, at least one, as one result whose rows are sorted by index.

    Raises:
        FingerprintChanged: two chunks were scored by different models.
    """
    first = parts[0]
    for part in parts:
        if part.value.fingerprint != first.value.fingerprint:
            places = (first.endpoint, part.endpoint)
            error = FingerprintChanged(first.value.fingerprint, part.value.fingerprint, places)
            error.request_id = part.request_id
            raise error
    return replace(first.value, data=_merge_rows(parts))


def merge_renders(parts: Sequence[Answered[r.RenderResult]]) -> r.RenderResult:
    """Return the chunks of one call as one result whose rows are sorted by index."""
    return r.RenderResult(_merge_rows(parts))


def merge_rank(part: Answered[r.RankResult]) -> r.RankResult:
    """Return a ranking whose errors carry the id of their request."""
    return replace(part.value, errors=_name_request(part.value.errors, part.request_id))


def _merge_rows(parts: Iterable[Answered[Any]]) -> tuple[Any, ...]:
    rows = (row for part in parts for row in _name_request(part.value.data, part.request_id))
    return tuple(sorted(rows, key=lambda row: row.index))


def _name_request(rows: tuple[OutcomeT, ...], request_id: str) -> tuple[OutcomeT, ...]:
    return tuple(replace(row, request_id=request_id) if isinstance(row, t.ScoreFailure) else row for row in rows)


def check_fingerprint(first: str | None, second: str) -> str:
    """Return `second`, the fingerprint of a later answer.

    Raises:
        FingerprintChanged: `first` is not None and differs from it.
    """
    if first is not None and first != second:
        raise FingerprintChanged(first, second)
    return second


def parse_rank(body: bytes, ids: Sequence[str | None], top_n: int | None) -> r.RankResult:
    """Return the ranking of completions.

    Args:
        body: the answer's body.
        ids: the id of each completion that was sent, None where it had none.
        top_n: the most completions that the ranking may have; None for all.

    Raises:
        InvalidAnswer: a completion is missing or occurs twice, the order is wrong, or a row breaks the wire format.
    """
    answer = w.decode(body, w.RANKING)
    ranked = _build_outcomes(_build_ranked, answer.results, "results", ids, range(len(ids)))
    failed = _build_outcomes(_build_ranked, answer.errors, "errors", ids, range(len(ids)))
    results = tuple(row for row in ranked if isinstance(row, r.RankedCompletion))
    errors = tuple(row for row in failed if isinstance(row, t.ScoreFailure))
    expected = min(len(ids) - len(errors), len(ids) if top_n is None else top_n)
    once = len({row.index for row in results} | {row.index for row in errors}) == len(results) + len(errors)
    if not once or (len(ranked), len(failed), len(results)) != (len(results), len(errors), expected):
        raise InvalidAnswer(f"{len(ranked)} results and {len(failed)} errors do not match {len(ids)} completions")
    if any(above.score < below.score for above, below in pairwise(results)):
        raise InvalidAnswer("results: they are not sorted by score, highest first")
    return r.RankResult(results, errors, answer.model, _build_provenance(answer.provenance))


def parse_comparison(body: bytes) -> r.Comparison:
    """Return the comparison of two completions; raise InvalidAnswer where it breaks the wire format."""
    answer = w.decode(body, w.COMPARISON)
    signals = {}
    for name, row in answer.signals.items():
        a, b = _build_signal(row.a), _build_signal(row.b)
        signals[name] = r.SignalComparison(row.margin, row.prob_a, a, b)
    blends = {name: row.margin for name, row in answer.blends.items()}
    built = {name: _build_length_penalty(row.length_penalty) for name, row in answer.blends.items()}
    penalties = {name: penalty for name, penalty in built.items() if penalty is not None}
    return r.Comparison(signals, blends, _build_provenance(answer.provenance), penalties)


def parse_render(body: bytes, ids: Sequence[str | None], positions: Sequence[int]) -> r.RenderResult:
    """Return how the items of a call are read; the arguments are those of `parse_score`.

    Raises:
        InvalidAnswer: there is not exactly one row per item, or a row breaks the wire format.
    """
    rows = _build_outcomes(_build_rendered_item, w.decode(body, w.RENDERS).data, "data", ids, positions)
    return r.RenderResult(_sort_rows(rows, positions))


def _build_rendered_item(row: Struct, index: int, where: str) -> r.RenderedItem:
    _check_present(row, ("signals",), where)
    signals = {name: _build_rendered_signal(signal) for name, signal in row.signals.items()}
    return r.RenderedItem(index, row.id, signals)


def _build_rendered_signal(signal: Struct) -> r.RenderedSignal:
    position = signal.score_position
    return r.RenderedSignal(
        text=signal.text,
        ids=signal.ids,
        boundary=signal.boundary,
        score_policy=position.policy,
        score_start=position.start,
        score_end=position.end,
        truncated_tokens=signal.truncated_tokens,
        dropped_tokens=signal.dropped_tokens,
        control_tokens_as_text=signal.control_tokens_as_text,
        steps=None if signal.steps is None else tuple(r.RenderedStep(*astuple(step)) for step in signal.steps),
        gate=signal.gate,
    )


def parse_models(body: bytes) -> tuple[r.ModelCard, ...]:
    """Return the signals and blends that are served; raise InvalidAnswer where the list breaks the wire format."""
    cards = w.decode(body, w.MODELS).data
    # Read a second time, because the structs drop the fields that make up `details`. The list is short.
    details = w.decode(body, w.DETAILS).data
    return tuple(r.ModelCard(card.id, card.kind, row) for card, row in zip(cards, details, strict=True))


def encode_outcome(outcome: t.Score | t.ScoreFailure | r.RenderedItem) -> dict[str, object]:
    """Return a row as the server wrote it; fields that the server omits are omitted."""
    row = asdict(outcome)
    row.pop("request_id", None)  # the client's own, about the answer that had this row
    if row["id"] is None:
        del row["id"]
    for signal in row.get("signals", {}).values():
        _drop_missing(signal)
    return row


def encode_comparison(comparison: r.Comparison) -> dict[str, object]:
    """Return a comparison as the server wrote it, without the answer's id and time, which the client does not keep."""
    row = asdict(comparison)
    for signal in row["signals"].values():
        _drop_none(signal, "prob_a")
        _drop_missing(signal["a"])
        _drop_missing(signal["b"])
    penalties = {name: {"length_penalty": penalty} for name, penalty in row.pop("length_penalties").items()}
    row["blends"] = {name: {"margin": margin} | penalties.get(name, {}) for name, margin in row["blends"].items()}
    _drop_none(row["provenance"], "blend")
    for signal in row["provenance"]["signals"].values():
        for optional in ("quantization", "weights_sha256", "preset"):
            _drop_none(signal, optional)
    return {"object": "comparison", **row}


def _drop_missing(signal: dict[str, Any]) -> None:
    """Remove the fields of a signal's value that the server omits."""
    for optional in ("prob", "steps", "std", "gate"):
        _drop_none(signal, optional)
    for step in signal.get("steps", ()):
        _drop_none(step, "prob")


def _drop_none(row: dict[str, object], name: str) -> None:
    if name in row and row[name] is None:
        del row[name]
