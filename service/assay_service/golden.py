"""Compare a loaded signal with golden rows and renderings: scores and ids that training or public text recorded."""

import math
from collections.abc import Iterable

import torch

from assay_service.errors import ContentError, StartError
from assay_service.preset import Golden, Rendering, StepRow
from assay_service.registry import Signal
from assay_service.scoring.blend import compute_probability
from assay_service.scoring.item import PROBE, Item, Message
from assay_service.scoring.manifest import GoldenRow
from assay_service.scoring.reading import Reading
from assay_service.scoring.render import Renderer

# Tolerances, relative and absolute, of a golden row's logit. The kernels of another machine stay within them; another
# model does not.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05, "int8": 0.25}

_REMEDY = "take all files from one checkpoint, and declare the keys of its training"


def check_forward(signal: Signal) -> None:
    """Run a real forward pass, and refuse a model that cannot score one plain item.

    Raises:
        StartError: the score is not finite.
    """
    logit = _read(signal, PROBE).logit
    if not math.isfinite(logit):
        raise StartError(f"the model scores a plain item with {logit}; declare `dtype: float32` or another checkpoint")


def check_preset_rows(signal: Signal, golden: Golden, name: str) -> None:
    """Recompute the published scores of a preset, and refuse a model that gives others.

    Args:
        signal: the loaded signal.
        golden: the scores.
        name: name of the preset, for errors.

    Raises:
        StartError: a score differs by more than its tolerance.
    """
    check_rows(signal, golden.rows, f"preset {name}", golden.dtype, golden.tolerance)


def check_rows(
    signal: Signal, rows: Iterable[GoldenRow | StepRow], source: str, dtype: str | None = None, tolerance: float = 0.05
) -> None:
    """Recompute golden rows, and refuse a model other than the one that they were computed with.

    Args:
        signal: the loaded signal.
        rows: the rows.
        source: name of the file that has the rows, for errors.
        dtype: dtype in which the rows were computed; None for that of the served weights.
        tolerance: largest difference of the probability of a step.

    Raises:
        StartError: a score differs by more than its tolerance.
    """
    served = signal.provenance
    # The coarsest dtype decides: that of the rows, of the served weights, or in which they compute.
    allowed = max(_TOLERANCE[key] for key in (dtype or served.dtype, served.dtype, served.compute))
    for number, row in enumerate(rows):
        messages = tuple(Message(role, content) for role, content in row.messages)
        item = Item(messages) if isinstance(row, StepRow) else Item(messages, row.finish_reason)
        reading = _read(signal, item, trained=True)  # the rows hold what training rendered
        if isinstance(row, StepRow):
            _check_steps(f"golden row {number}", row, reading, source, tolerance)
        elif not math.isclose(reading.logit, row.logit, rel_tol=allowed, abs_tol=allowed):
            raise StartError(
                f"golden row {number}: {source} says {row.logit:.6f}, but the loaded model gives {reading.logit:.6f}; "
                f"{_REMEDY}"
            )


def find_difference(renderer: Renderer, renderings: Iterable[Rendering], model: str) -> str | None:
    """Return how a conversation is rendered differently from its record, and what to do; None if none is.

    Args:
        renderer: renderer of the signal.
        renderings: conversations with their text, their ids and the positions that are read.
        model: hub id of the checkpoint that the renderings are for.
    """
    for number, known in enumerate(renderings):
        item = Item(tuple(Message(role, content) for role, content in known.messages))
        try:
            rendered = renderer.render(item, trained=True)
        except ContentError as error:
            return f"golden rendering {number} cannot be rendered: {error.message}; declare the keys of training"
        found = rendered.sequence
        if found.ids != known.ids:
            place, tokens = _find_first_difference(known.ids, found.ids, renderer)
            return f"golden rendering {number} differs first at position {place}: {tokens}; " + (
                f"the tokenizer encodes the same text otherwise: take tokenizer.json from {model}"
                if rendered.text == known.text
                else f"the template prints another text: take tokenizer and chat template from {model}, or declare the "
                "template of training (`template: FILE`)"
            )
        read = tuple(place for span in found.score_spans for place in range(span.start, span.end))
        if (read, found.gate) != (known.read, known.gate):
            return (
                f"golden rendering {number} is read at {_show_places(known.read, known.gate)}, but the loaded signal "
                f"reads it at {_show_places(read, found.gate)}; declare the `score_position` of training"
            )
    return None


def _find_first_difference(known: tuple[int, ...], found: tuple[int, ...], renderer: Renderer) -> tuple[int, str]:
    """Return the first position at which two lists of ids differ, and a text with both tokens there."""
    pairs = zip(known, found, strict=False)
    place = next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(known), len(found)))
    shown = [
        f"{ids[place]} ({renderer.tokenizer.convert_ids_to_tokens(ids[place])!r})" if place < len(ids) else "the end"
        for ids in (known, found)
    ]
    return place, f"{shown[0]} is recorded, but the loaded tokenizer gives {shown[1]}"


def _show_places(read: tuple[int, ...], gate: int | None) -> str:
    places = ", ".join(map(str, read))
    return places if gate is None else f"{places} (gate: {gate})"


def _check_steps(where: str, row: StepRow, reading: Reading, source: str, tolerance: float) -> None:
    """Refuse other probabilities of steps than those of a row."""
    given = [compute_probability(logit) for logit in reading.steps]
    same = len(given) == len(row.probs) and all(
        abs(own - published) <= tolerance for own, published in zip(given, row.probs, strict=True)
    )
    if not same:
        shown = [", ".join(f"{prob:.4f}" for prob in probs) or "no steps" for probs in (row.probs, given)]
        raise StartError(
            f"{where}: {source} says {shown[0]} for the steps, but the loaded model gives {shown[1]}; {_REMEDY}"
        )


def _read(signal: Signal, item: Item, *, trained: bool = False) -> Reading:
    """Return what a signal reads of an item; a logit that is not finite is NaN, and has no steps."""
    with torch.inference_mode():
        rendered = signal.renderer.render(item, trained=trained)
        ((numbers,),) = signal.model.read([rendered.sequence], (signal.name,))
    # Checked by the callers, whose errors name the item.
    return signal.reading.read(numbers) if all(map(math.isfinite, numbers)) else Reading(math.nan)
