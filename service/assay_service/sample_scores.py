"""Read prompts with completions from a file, and score them with a loaded signal on the kernels that serve it."""

import json
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from assay_service.errors import ContentError, StartError
from assay_service.registry import Signal
from assay_service.scoring.item import Item, Message
from assay_service.scoring.layout import TokenSequence

_KEYS = "`prompt` or `messages`, and `completion`, `completions`, or `chosen` and `rejected`"

# Items that one forward pass computes.
_AT_ONCE = 32


def read_prompts(path: Path) -> list[tuple[Item, ...]]:
    """Return the items of each prompt of a JSONL file.

    Raises:
        StartError: a line is not an object with these keys; the message names the line.
    """
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            prompts.append(_read_row(json.loads(line)))
        except (ValueError, TypeError, KeyError, ContentError) as error:
            raise StartError(f"{path}:{number}: {error}; give each row {_KEYS}") from error
    if not prompts:
        raise StartError(f"{path}: has no rows; give it rows with {_KEYS}")
    return prompts


def _read_row(row: Any) -> tuple[Item, ...]:  # noqa: ANN401 - whatever JSON holds
    """Return the items of one row."""
    if not isinstance(row, dict):
        raise TypeError("is not an object")
    before = row["messages"] if "messages" in row else [{"role": "user", "content": row["prompt"]}]
    messages = tuple(Message(_read_text(message["role"]), _read_text(message["content"])) for message in before)
    completions = row.get("completions") or (
        [row["completion"]] if "completion" in row else [row["chosen"], row["rejected"]]
    )
    return tuple(Item((*messages, Message("assistant", _read_text(text)))) for text in completions)


def _read_text(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def score(signal: Signal, prompts: Sequence[tuple[Item, ...]], path: Path) -> Iterator[tuple[float, ...]]:
    """Yield the logits of each prompt's completions.

    Args:
        signal: the loaded signal.
        prompts: the items of each prompt.
        path: the file that they are from, for errors.

    Raises:
        StartError: an item cannot be rendered, or a logit is not finite; the message names the row.
    """
    rendered = [_render(signal, items, f"{path}: row {number}") for number, items in enumerate(prompts, start=1)]
    sequences = [sequence for row in rendered for sequence in row]
    logits: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(sequences), _AT_ONCE):
            (rows,) = signal.model.read(sequences[start : start + _AT_ONCE], (signal.name,))
            logits += (
                signal.reading.read(numbers).logit if all(map(math.isfinite, numbers)) else math.nan for numbers in rows
            )
    rest = iter(logits)
    for number, row in enumerate(rendered, start=1):
        found = tuple(islice(rest, len(row)))
        if not all(map(math.isfinite, found)):
            raise StartError(
                f"{path}: row {number}: signal {signal.name}: a logit is not finite; declare `compute: float32`"
            )
        yield found


def _render(signal: Signal, items: Sequence[Item], where: str) -> list[TokenSequence]:
    """Return the sequences of the completions of one prompt."""
    try:
        return [signal.renderer.render(item).sequence for item in items]
    except ContentError as error:
        raise StartError(f"{where}: {error.message}; remove the row") from error
