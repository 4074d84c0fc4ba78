"""Choose the golden rows of a checkpoint: items whose logits every load recomputes."""

from collections.abc import Sequence
from contextlib import suppress

from assay_service.errors import ContentError
from assay_service.scoring.item import Item
from assay_service.scoring.layout import TokenSequence
from assay_service.scoring.render import Renderer
from assay_training.config.base import ConfigError
from assay_training.data.examples import Example
from assay_training.distributed.processes import print_once

GOLDEN_ROWS = 3  # each costs a forward pass at every load of the checkpoint

Golden = tuple[Item, TokenSequence]


def render_golden(renderer: Renderer, prompt: str, completion: str) -> Golden:
    """Return a declared golden row as an item and its token ids.

    Raises:
        ConfigError: the row cannot be rendered.
    """
    item = Item.of(prompt, completion)
    try:
        return item, renderer.render(item).sequence
    except ContentError as error:
        raise ConfigError(f"golden: {prompt[:40]!r}: {error.message}") from error


def take_first_rows(renderer: Renderer, examples: Sequence[Example]) -> list[Golden]:
    """Take the first items of the data that fit without truncation as golden rows, one item per record.

    Raises:
        ConfigError: no item fits.
    """
    rows: list[Golden] = []
    for example in examples:
        with suppress(ContentError):  # the item is longer than max_length
            rows.append((example.record.items[0], renderer.render(example.record.items[0]).sequence))
        if len(rows) == GOLDEN_ROWS:
            break
    if examples and not rows:
        raise ConfigError("golden: no row of the data fits max_length; give a short prompt and completion")
    print_once(f"golden: the first {len(rows)} rows of the data are stored in the checkpoint, checked at each load")
    return rows
