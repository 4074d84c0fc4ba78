"""Keep rendered items up to a number of bytes, so that an item that was scored before is not rendered again.

A rendering depends on the item, the renderers of its signals and the truncation only. The least recently used go first.
"""

import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from assay_service.scoring.item import Item, Message, Truncation
from assay_service.scoring.render import Renderer
from assay_service.scoring.rendered import Rendered

Renderings = dict[str, Rendered]
# The way in which items are rendered: the signals with their renderers, and the truncation.
Way = tuple[tuple[tuple[str, Renderer], ...], Truncation]

# Bytes in CPython, as `tracemalloc` counts them: of an entry with its keys, of a rendering, of a message, and of each
# token id (the number and its place in the tuple). Texts come on top.
_ENTRY_BYTES, _RENDERING_BYTES, _MESSAGE_BYTES, _TOKEN_BYTES = 700, 400, 120, 40


@dataclass(slots=True)
class Kept:
    """The renderings of an item, with the keys of their logits.

    Attributes:
        renderings: what is scored, by signal.
        keys: keys of the logits in the engine's cache, by the fingerprint of what computes them.
    """

    renderings: Renderings
    keys: dict[str, bytes] = field(default_factory=dict)


class KeptRenderings:
    """A least-recently-used cache of renderings. It is not safe for concurrent use.

    Args:
        max_bytes: size limit; beyond it the least recently used are removed. 0 keeps nothing.

    Attributes:
        size_bytes: size of the cache, about.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.size_bytes = 0
        self._kept: OrderedDict[tuple[Way, Item], Kept] = OrderedDict()

    def get(self, way: Way, item: Item) -> Kept | None:
        """Return what is kept of an item, and mark it as used; None for an unknown item."""
        kept = self._kept.get((way, item))
        if kept is not None:
            self._kept.move_to_end((way, item))
        return kept

    def put(self, way: Way, item: Item, renderings: Renderings) -> None:
        """Keep the renderings of an item, and remove the least recently used beyond the size limit."""
        if (way, item) in self._kept:
            return
        self._kept[way, item] = Kept(renderings)
        self.size_bytes += count_bytes(item, renderings)
        while self.size_bytes > self._max_bytes:
            (_, oldest), removed = self._kept.popitem(last=False)
            self.size_bytes -= count_bytes(oldest, removed.renderings)


def build_way(renderers: Mapping[str, Renderer], truncation: Truncation) -> Way:
    """Return the way in which items are rendered for signals with these renderers."""
    return tuple(renderers.items()), truncation


def count_bytes(item: Item, renderings: Renderings) -> int:
    """Return the bytes that a kept item takes, about; signals may share a rendering."""
    different = {id(rendered): rendered for rendered in renderings.values()}.values()
    texts = [text for message in item.messages for text in _list_texts(message)]
    texts += [text for r in different for text in (r.text, r.reasoning, *r.steps, *(d.text for d in r.dropped))]
    tokens = sum(len(rendered.sequence.ids) for rendered in different)
    rest = _ENTRY_BYTES + _RENDERING_BYTES * len(different) + _MESSAGE_BYTES * len(item.messages)
    return rest + sum(map(sys.getsizeof, texts)) + _TOKEN_BYTES * tokens


def _list_texts(message: Message) -> list[str]:
    fields = [text for field in (*message.fields, *message.links) for text in field]
    return [message.role, message.content, *message.parts, *fields, *(call.arguments for call in message.tool_calls)]
