"""Define what `POST /v1/render` answers, and build its parts."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from assay_service.api.answer_parts import build_failed_row, build_id
from assay_service.api.answers import Answer, FailedRow
from assay_service.errors import AssayError
from assay_service.registry import Registry, Signal
from assay_service.scoring.manifest import Reasoning
from assay_service.scoring.rendered import Rendered


class ScorePositionInfo(Answer):
    """The tokens that the head reads: `[start, end)`; with steps from the first to the last token that is read.

    `characters` is the place of these tokens in `text`; null where the ids do not follow from the text alone.
    """

    policy: str
    start: int
    end: int
    characters: tuple[int, int] | None


class DroppedText(Answer):
    """A text, or a part of it, that the template does not print; it stands in `field` of `messages[message]`."""

    message: int
    field: str
    text: str


class ReasoningInfo(Answer):
    """The signal's policy for reasoning, and the reasoning that it removed from this completion."""

    policy: Reasoning
    removed: str


class StepPosition(Answer):
    """A step of the completion, and the index of the token that is read for it."""

    index: int
    token: int
    text: str


class RenderedSignal(Answer):
    """The exact text and token ids that one signal scores.

    `token_types` for bases that have more than one, `steps` for signals that score steps. `gate` is the index of the
    token that a gating network reads, for heads with one that reads the prompt.
    """

    text: str
    ids: list[int]
    boundary: int
    score_position: ScorePositionInfo
    gate: int | None = None
    steps: list[StepPosition] | None = None
    token_types: list[int] | None = None
    truncated_tokens: int
    dropped_tokens: int
    dropped: list[DroppedText]
    control_tokens_as_text: int
    reasoning: ReasoningInfo


class RenderedRow(Answer):
    """An item as every signal reads it."""

    index: int
    id: str | None = None
    signals: dict[str, RenderedSignal]


class RenderAnswer(Answer):
    """Answer of `POST /v1/render`."""

    object: Literal["list"] = "list"
    data: list[RenderedRow | FailedRow]


def build_rendered_rows(
    registry: Registry, results: Sequence[Mapping[str, Rendered] | AssayError], ids: Sequence[str | None]
) -> list[RenderedRow | FailedRow]:
    """Build one row for each item, in their order, from its renderings by signal or from its error."""
    rows: list[RenderedRow | FailedRow] = []
    for index, (result, item_id) in enumerate(zip(results, ids, strict=True)):
        if isinstance(result, AssayError):
            rows.append(FailedRow.model_validate(build_failed_row(result, index=index, item_id=item_id)))
            continue
        signals = {name: build_rendered_signal(registry.signals[name], rendered) for name, rendered in result.items()}
        rows.append(RenderedRow(index=index, signals=signals, **build_id(item_id)))
    return rows


def build_rendered_signal(signal: Signal, rendered: Rendered) -> RenderedSignal:
    """Build the text and token ids that one signal scores, with the tokens that its head reads."""
    spans, rules = rendered.sequence.score_spans, signal.renderer.rules
    optional: dict[str, Any] = {} if rules.token_types is None else {"token_types": rendered.sequence.types}
    if rendered.sequence.gate is not None:
        optional["gate"] = rendered.sequence.gate
    if rendered.steps:
        places = enumerate(zip(spans, rendered.steps, strict=True))
        optional["steps"] = [StepPosition(index=i, token=span.start, text=text) for i, (span, text) in places]
    return RenderedSignal(
        text=rendered.text,
        ids=list(rendered.sequence.ids),
        boundary=rendered.boundary,
        score_position=ScorePositionInfo(
            policy=rules.score_position,
            start=spans[0].start,
            end=spans[-1].end,
            characters=signal.renderer.locate_reading(rendered),
        ),
        truncated_tokens=rendered.truncated_tokens,
        dropped_tokens=rendered.dropped_tokens,
        dropped=[DroppedText(message=p.slot.index, field=p.slot.field, text=p.text) for p in rendered.dropped],
        control_tokens_as_text=rendered.control_tokens_as_text,
        reasoning=ReasoningInfo(policy=rules.reasoning, removed=rendered.reasoning),
        **optional,
    )
